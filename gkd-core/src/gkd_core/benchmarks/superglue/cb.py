"""`superglue/cb`: CommitmentBank, whether the author of a text holds a clause in it to be true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gkd_core.benchmarks.benchmark import SCORE
from gkd_core.benchmarks.superglue.suite import SuperGLUE
from gkd_core.kinds.metrics import accuracy, macro_f1

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData


class CB(SuperGLUE):
    """Whether a text entails a clause within it, or contradicts it (de Marneffe et al. 2019)."""

    name = "superglue/cb"
    folder = "CB"
    hub = "aps/super_glue:cb"
    text, pair = "premise", "hypothesis"
    classes = ("entailment", "contradiction", "neutral")
    pattern = "{text} Question: {bare_pair}? Answer: {blank}."
    words = ("Yes", "No", "Maybe")
    official = ("macro_f1", "accuracy")
    metric = SCORE

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return F1, the mean of the three classes, and accuracy."""
        found, labels = torch.as_tensor(predictions), torch.tensor(split.labels)
        return {"macro_f1": macro_f1(found, labels), "accuracy": accuracy(found, labels)}
