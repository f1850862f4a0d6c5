"""`glue/sst2`: the Stanford Sentiment Treebank."""

from __future__ import annotations

from gkd_core.benchmarks.glue.suite import Glue


class SST2(Glue):
    """Whether a phrase of a film review is positive (Socher et al. 2013)."""

    name = "glue/sst2"
    folder = "SST-2"
    hub = "nyu-mll/glue:sst2"
    text, pair = "sentence", None
    classes = ("negative", "positive")
    pattern = "{text} It was {blank}."
    words = ("terrible", "great")
