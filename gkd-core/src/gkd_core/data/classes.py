"""The class order, which teacher, student and data must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.contract.task import Split, TaskData

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind


def order_classes(data: TaskData, order: Sequence[str], kind: TaskKind) -> TaskData:
    """Return the data with its classes renumbered to another order.

    Args:
        data: A task with classes.
        order: The class names in the order of their new ids.
        kind: Its kind.
    """
    ids = [list(order).index(name) for name in data.classes]
    return replace(
        data,
        classes=tuple(order),
        train=_renumber(data.train, ids, kind),
        validation=_renumber(data.validation, ids, kind),
        test=None if data.test is None else _renumber(data.test, ids, kind),
    )


def _renumber(split: Split, ids: Sequence[int], kind: TaskKind) -> Split:
    if split.labels is None:
        return split
    return replace(split, labels=[kind.renumber(label, ids) for label in split.labels])
