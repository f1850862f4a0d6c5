"""`glue/cola`: the Corpus of Linguistic Acceptability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gkd_core.benchmarks.glue.suite import Glue
from gkd_core.kinds.metrics import Metric, matthews

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData


class CoLA(Glue):
    """Whether a sentence is grammatical (Warstadt et al. 2019); its files have no header."""

    name = "glue/cola"
    folder = "CoLA"
    hub = "nyu-mll/glue:cola"
    header = ("source", "label", "mark", "sentence")
    text, pair = "sentence", None
    classes = ("unacceptable", "acceptable")
    pattern = "{text} This is {blank}."
    words = ("incorrect", "correct")
    official = ("matthews",)
    metric = Metric("matthews", higher_is_better=True)

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return Matthews' correlation."""
        return {"matthews": matthews(torch.as_tensor(predictions), torch.tensor(split.labels))}
