"""`superglue/boolq`: questions about a passage, answered by yes or no."""

from __future__ import annotations

from gkd_core.benchmarks.superglue.suite import SuperGLUE


class BoolQ(SuperGLUE):
    """Whether the answer to a question about a passage is yes (Clark et al. 2019)."""

    name = "superglue/boolq"
    folder = "BoolQ"
    hub = "aps/super_glue:boolq"
    text, pair = "question", "passage"
    classes = ("false", "true")
    pattern = "{pair} Question: {bare_text}? Answer: {blank}."
    words = ("No", "Yes")
