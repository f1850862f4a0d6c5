"""The common base of the kinds with one class per row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gkd_core.contract.task import Split
from gkd_core.data.columns import CheckedRows
from gkd_core.data.labels import class_ids, find_classes, known_classes
from gkd_core.kinds.metrics import Metric, accuracy, macro_f1
from gkd_core.kinds.task_kind import Evaluation, RowMeasure, TaskKind


class ClassKind(TaskKind):
    """The common base of the kinds with one class per row."""

    metric = Metric("accuracy", True)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    has_classes = True

    def find_classes(self, rows: CheckedRows, declared: tuple[str, ...]) -> tuple[str, ...]:
        """Return the declared classes, those that the model knows, or the different labels."""
        found, table = rows.labels or (), rows.table
        return declared or known_classes(found, table.known) or find_classes(found, table.source)

    def parse(self, rows: CheckedRows, classes: Sequence[str]) -> list[int]:
        """Return the class id of each row."""
        return class_ids(rows.labels or (), classes, rows.table.numbers, rows.table.faults)

    def label_problem(self, label: Any, classes: Sequence[str]) -> str:
        """Expect a class id."""
        known = isinstance(label, int) and 0 <= label < len(classes)
        return "" if known else f"the label {label!r}, which is no id of {tuple(classes)}"

    def score(self, logits: Tensor) -> Tensor:
        """Return the likeliest class of each row."""
        return logits.argmax(-1)

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return accuracy and macro F1."""
        loss = float(torch.nn.functional.cross_entropy(logits, labels))
        return {"loss": loss, **_scores(predictions, labels)}

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes accuracy and macro F1 of some of the rows."""
        if type(self).measure is not ClassKind.measure:
            # A subclass with metrics of its own computes them in `measure` alone.
            return super().remeasure(evaluation, split, classes)
        labels = self.label_array(split)
        if not isinstance(evaluation.predictions, Tensor) or labels is None:
            return None
        both = evaluation.predictions, torch.from_numpy(labels)
        return lambda rows: _scores(*(column[torch.from_numpy(rows)] for column in both))

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return the metric of the most frequent class; in accuracy, its share."""
        if not labels:
            return None
        truth = torch.tensor(list(labels))
        guessed = torch.full_like(truth, Counter(labels).most_common(1)[0][0])
        logits = torch.zeros(len(truth), int(truth.max()) + 1)
        return self.measure(logits, guessed, truth)[self.metric.name]


def _scores(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    return {"accuracy": accuracy(predictions, labels), "macro_f1": macro_f1(predictions, labels)}
