"""`superglue/rte`: whether a text entails a hypothesis."""

from __future__ import annotations

from gkd_core.benchmarks.superglue.suite import SuperGLUE


class RTE(SuperGLUE):
    """Whether a text entails a hypothesis (Dagan et al. 2006, and three later challenges)."""

    name = "superglue/rte"
    folder = "RTE"
    hub = "aps/super_glue:rte"
    text, pair = "premise", "hypothesis"
    classes = ("entailment", "not_entailment")
    pattern = "{text} Question: {bare_pair}? Answer: {blank}."
    words = ("Yes", "No")
