"""The class order, which teacher, student and data must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gkd_core.contract.task import Split, TaskData


def order_classes(data: TaskData, order: Sequence[str]) -> TaskData:
    """Return the data with its classes renumbered to another order.

    Args:
        data: A classification task.
        order: The class names in the order of their new ids.
    """
    ids = [list(order).index(name) for name in data.classes]
    return replace(
        data,
        classes=tuple(order),
        train=_renumber(data.train, ids),
        validation=_renumber(data.validation, ids),
        test=None if data.test is None else _renumber(data.test, ids),
    )


def _renumber(split: Split, ids: Sequence[int]) -> Split:
    if split.labels is None:
        return split
    return replace(split, labels=[ids[int(label)] for label in split.labels])
