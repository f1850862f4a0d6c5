"""The common base of embeddings and their similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gkd_core.contract.task import Split
from gkd_core.data.columns import find_text, pick_column, select_texts
from gkd_core.data.labels import is_unlabeled
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import TaskKind

if TYPE_CHECKING:
    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.table import Table

SCORES = ("score", "similarity_score", "similarity", "label")


class VectorKind(TaskKind):
    """The common base of the kinds whose models have no head and make a vector of each text."""

    head = "body"
    metric = Metric("spearman", True)
    metrics = ("spearman", "pearson")

    @property
    def auto(self) -> Any:
        """The Auto class of models without a head."""
        from transformers import AutoModel

        return AutoModel

    def unused(self, name: str) -> bool:
        """Return whether a weight is that of a pooler, which the mean over the tokens replaces."""
        return name.startswith("pooler.")

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table has scores."""
        column = pick_column(table, config.label, SCORES)
        return column is not None and not is_unlabeled(table.columns[column])

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return 0: a constant does not correlate with anything."""
        return 0.0 if labels else None


def mean_vectors(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the last hidden states over the tokens that are not padding, `[B, D]`.

    Args:
        output: What the forward pass of a model without a head returned.
        inputs: Its inputs.
    """
    hidden: Tensor = output.last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def interleaved(split: Split) -> list[str]:
    """Return both texts of each pair, one after the other."""
    return [text for both in zip(split.text, split.pair or (), strict=True) for text in both]


def scored_rows(table: Table, config: TaskConfig) -> Split:
    """Return texts or pairs, with the scores where there are any.

    Raises:
        DataError: A column is missing, or a row is invalid.
    """
    table.check_filled()
    column = pick_column(table, config.label, SCORES)
    text, pair = find_text(table, config, excluded=() if column is None else (column,))
    if column is None:
        return select_texts(table, text, pair, None)
    scores = [_score(value) for value in table.columns[column]]
    for number, score, value in zip(table.numbers, scores, table.columns[column], strict=True):
        if score is None:
            table.faults.add(number, f"the score is {value!r}, not a number (column {column!r})")
    return select_texts(table, text, pair, scores)


def _score(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
