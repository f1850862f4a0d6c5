"""The common base of the kinds with one number per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.data.encode import Encoded
from gkd_core.kinds.metrics import correlations
from gkd_core.kinds.task_kind import TaskKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.contract.task import Split


class ValueKind(TaskKind):
    """The common base of the kinds with one number per row."""

    output = "value"

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return 1: the number."""
        return 1

    def label_array(self, split: Split) -> NDArray[Any] | None:
        """Return the values in fp32."""
        return None if split.labels is None else np.array(split.labels, np.float32)

    def score(self, logits: Tensor) -> Tensor:
        """Return the value of each row."""
        return logits.squeeze(-1)

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the correlations of Pearson and Spearman."""
        loss = float((predictions - labels).square().mean())
        return {"loss": loss, **correlations(predictions, labels)}

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return 0: a constant does not correlate with anything."""
        return 0.0 if labels else None

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows with a value each."""
        made = super().planned(rows, length, token, classes)
        return replace(made, labels=np.zeros(rows, np.float32))
