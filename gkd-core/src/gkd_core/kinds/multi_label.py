"""`multi-label`: any number of classes per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gkd_core.contract.task import Fit
from gkd_core.data.columns import find_text, label_columns, select_texts
from gkd_core.data.encode import Encoded
from gkd_core.data.labels import (
    is_missing,
    known_classes,
    label_names,
    shown_label,
    sorted_classes,
)
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric, f1_of_counts, f1_scores
from gkd_core.kinds.task_kind import ReadRows, TaskKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.task import Split
    from gkd_core.data.table import Table

FLAGS = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1}
"""The values that a column of a class may hold."""


class MultiLabel(TaskKind):
    """Any number of classes for each text or pair of texts.

    A row has a list of labels (or a single one), or a 0 or 1 in one column per class. Each class
    is predicted by itself: the hard loss is the mean binary cross-entropy over the classes, and a
    class is predicted where its probability is above one half.
    """

    name = "multi-label"
    head = "classification head"
    metric = Metric("micro_f1", True)
    metrics = ("micro_f1", "macro_f1", "exact")
    output = "binary"
    has_classes = True
    problem_type = "multi_label_classification"
    augments = True

    def made(self, config: PretrainedConfig) -> bool:
        """Recognize a classifier by its problem type."""
        return super().made(config) and config.problem_type == self.problem_type

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take lists of labels, or two columns of zeros and ones without a label column."""
        labels = label_columns(table, config)
        if len(labels) > 1:
            return Fit.NO
        if labels:
            values = table.columns.get(labels[0], ())
            lists = [value for value in values if isinstance(value, list)]
            # Lists of one label each may be a mistake; single labels are one class each for most.
            several = any(len(value) != 1 for value in lists)
            if several and len(lists) == len(values):
                return Fit.CERTAIN
            return Fit.NO if lists or not len(values) else Fit.POSSIBLE
        return Fit.CERTAIN if len(_flag_columns(table, config)) > 1 else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts, with a 0 or 1 for each class as label."""
        train = tables["train"]
        first = next((t for t in tables.values() if self.is_labeled(t, t, config)), train)
        labels = label_columns(first, config)
        flags = [] if labels else _flag_columns(first, config)
        must = self.is_labeled(train, first, config)
        text, pair = find_text(train, config, excluded=(*labels, *flags))
        _refuse_missing(first, flags)
        labeled = self.is_labeled(first, first, config)
        classes = tuple(flags) or (_classes(first, labels[0]) if labeled else ())
        splits = {}
        for name, table in tables.items():
            marks = None
            if must or self.is_labeled(table, first, config):
                marks = _marks(table, flags) if flags else _lists(table, labels[0], classes)
            splits[name] = select_texts(table, text, pair, marks)
        return ReadRows(splits, classes)

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether the label column holds labels; columns of 0 and 1 always count."""
        labels = label_columns(train, config)
        if labels:
            return any(table.columns.get(labels[0], ()))
        flags = _flag_columns(train, config)
        return bool(flags) and any(name in table.columns for name in flags)

    def renumber(self, label: Any, ids: Sequence[int], count: int = 0) -> list[int]:
        """Return the marks of a row in another order of the classes."""
        marks = [0] * max(len(ids), count)
        for mark, index in zip(label, ids, strict=True):
            marks[index] = mark
        return marks

    def classes_of(self, label: Any) -> list[int]:
        """Return the classes that are marked."""
        return [index for index, mark in enumerate(label) if mark]

    def any_labels(self, split: Split, classes: Sequence[str]) -> list[list[int]]:
        """Return no mark for any row."""
        return [[0] * len(classes)] * len(split)

    def shown(self, labels: Tensor | Sequence[Any], classes: Sequence[str]) -> list[Any]:
        """Return the names of the classes that are marked."""
        return [[classes[index] for index in self.classes_of(marks)] for marks in labels]

    def label_array(self, split: Split) -> NDArray[Any] | None:
        """Return the marks in fp32, `[N, C]`."""
        return None if split.labels is None else np.array(split.labels, np.float32)

    def score(self, logits: Tensor) -> Tensor:
        """Return the marks of each row, int64 `[N, C]`."""
        return (logits > 0).long()

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return micro and macro F1, and the share of rows whose classes are all right."""
        hits = (predictions * labels).sum(0).double()
        marked = predictions.sum(0).double() + labels.sum(0).double()
        return {
            "loss": float(binary_cross_entropy_with_logits(logits, labels)),
            "micro_f1": f1_of_counts(hits.sum(), marked.sum()),
            "macro_f1": float(f1_scores(hits, marked).mean()),
            "exact": float((predictions == labels).all(-1).double().mean()),
        }

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return the metric of the most frequent class, marked in every row."""
        if not labels:
            return None
        truth = torch.tensor(labels, dtype=torch.float32)
        guessed = torch.zeros_like(truth)
        guessed[:, truth.sum(0).argmax()] = 1
        return self.measure(guessed, guessed, truth)[self.metric.name]

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows without any class."""
        labels = np.zeros((rows, len(classes)), np.float32)
        return super().planned(rows, length, token, classes).with_labels(labels)


def _flag_columns(table: Table, config: TaskConfig) -> list[str]:
    """Return the columns of zeros and ones, in the order of the table."""
    texts = {config.text, config.text_pair}
    return [
        name
        for name, values in table.columns.items()
        if name not in texts and len(values) and all(_flag(value) is not None for value in values)
    ]


def _refuse_missing(table: Table, flags: Sequence[str]) -> None:
    """Reject rows without a value for each class that the model knows."""
    missing = [name for name in table.known if name not in flags]
    if flags and missing and set(flags) < set(table.known):
        raise DataError(
            f"{table.source} has columns of 0 and 1 for {', '.join(map(repr, flags))}, but none "
            f"for {missing[0]!r}, which the model predicts too. Add one"
        )


def _flag(value: Any) -> int | None:
    try:
        return FLAGS.get(value.lower() if isinstance(value, str) else value)
    except TypeError:  # a list or an object
        return None


def _marks(table: Table, names: Sequence[str]) -> list[list[int]]:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise DataError(
            f"{table.source} has no column {missing[0]!r}, which is a class in training. Give a "
            "file with the same columns"
        )
    rows = []
    for number, values in zip(
        table.numbers, zip(*(table.columns[name] for name in names), strict=True), strict=True
    ):
        marks = [_flag(value) for value in values]
        for name, mark, value in zip(names, marks, values, strict=True):
            if mark is None:
                table.faults.add(number, f"class {name!r} is {value!r}, expected 0 or 1")
        rows.append([mark or 0 for mark in marks])
    return rows


def _classes(train: Table, column: str) -> tuple[str, ...]:
    found = label_names(one for value in train.columns[column] for one in _listed(value))
    known = train.classes.get(column) or known_classes(found, train.known)
    if known:
        return known
    if len(found) < 2:
        raise DataError(
            f"the rows of {train.source} have {len(found)} different labels (column {column!r}); "
            "multi-label needs at least 2 classes. Check task.label"
        )
    return sorted_classes(found)


def _lists(table: Table, column: str, classes: Sequence[str]) -> list[list[int]]:
    if column not in table.columns:
        raise DataError(
            f"{table.source} has no labels: the training data has the column {column!r}. Give a "
            "file with the same columns"
        )
    ids = {name: index for index, name in enumerate(classes)}
    rows = []
    for number, value in zip(table.numbers, table.columns[column], strict=True):
        if isinstance(value, Mapping) or is_missing(value):
            table.faults.add(number, f"the labels are {value!r}, expected a list")
            continue
        marks = [0] * len(classes)
        for name in map(shown_label, _listed(value)):
            if name in ids:
                marks[ids[name]] = 1
            else:
                table.faults.add(number, f"label {name!r} never occurs in training")
        rows.append(marks)
    return rows


def _listed(value: Any) -> Sequence[Any]:
    """Return the labels of a row; one that is not in a list is the only one."""
    if isinstance(value, Mapping) or is_missing(value):
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)
