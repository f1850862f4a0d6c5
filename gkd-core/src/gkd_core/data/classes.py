"""The class order, which teacher, student and data must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gkd_core.contract.task import Split, TaskData
from gkd_core.data.labels import label_name
from gkd_core.errors import DataError

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind


def order_classes(data: TaskData, order: Sequence[str], kind: TaskKind) -> TaskData:
    """Return the data with its classes renumbered to another order.

    Args:
        data: A task with classes.
        order: The class names in the order of their new ids: those of the data, as numbers may be
            written (`1.0`), and perhaps others.
        kind: Its kind.
    """
    if tuple(order) == data.classes:
        return data
    names = [label_name(name) for name in order]
    ids = [names.index(label_name(name)) for name in data.classes]
    count = len(names)
    return replace(
        data,
        classes=tuple(order),
        train=_renumber(data.train, ids, kind, count),
        validation=_renumber(data.validation, ids, kind, count),
        test=None if data.test is None else _renumber(data.test, ids, kind, count),
    )


def refuse_one_class(
    labels: Sequence[Any], classes: Sequence[str], kind: TaskKind, source: str
) -> None:
    """Raise `DataError` for rows to train on that all have one label, or none.

    Args:
        labels: The label of each row.
        classes: The task's classes.
        kind: Its kind.
        source: User-facing name of the rows.
    """
    if not kind.has_classes or kind.predicted != "sample":
        return
    found = {index for label in labels for index in kind.classes_of(label)}
    if len(found) < 2:
        shown = f"the label {classes[found.pop()]!r}" if found else "no label"
        raise DataError(
            f"every row of {source} has {shown}; training needs rows of at least 2 classes. Check "
            "task.label, or set task.kind"
        )


def _renumber(split: Split, ids: Sequence[int], kind: TaskKind, count: int) -> Split:
    if split.labels is None:
        return split
    return replace(split, labels=[kind.renumber(label, ids, count) for label in split.labels])
