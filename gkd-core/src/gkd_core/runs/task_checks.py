"""Checks of the rows that a task has loaded: wrong ones would train a wrong student."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

from gkd_core.contract.task import COLUMNS, SPLITS, Split, TaskData
from gkd_core.errors import suggest
from gkd_core.plugins.answers import one_of, refused

if TYPE_CHECKING:
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind

TEXTS = ("text", "pair", "group", "target")
"""Columns whose values are texts."""


def check_loaded(task: Task, data: Any) -> TaskData:
    """Return the data that a task has loaded, after checking it.

    Args:
        task: The task.
        data: What its `load` returned.

    Raises:
        PluginError: It is no `TaskData`, or one with rows that cannot be used.
    """
    wanted = "a `TaskData` whose rows are complete; `gkd_core.testing.check_task` checks a task"
    loaded: TaskData = one_of(task, "load", data, TaskData, wanted)
    problem = next(problems(loaded, task.kinds), None)
    if problem is not None:
        raise refused(task, "load", f"returned rows that cannot be used: {problem}", wanted)
    return loaded


def problems(data: TaskData, kinds: Mapping[str, TaskKind]) -> Iterator[str]:
    """Yield what is wrong with the rows of a task.

    Args:
        data: The rows.
        kinds: Every kind of task by name.
    """
    kind = kinds.get(data.kind)
    if kind is None:
        yield f"there is no kind {data.kind!r}.{suggest(data.kind, kinds)}".rstrip(".")
        return
    if not isinstance(data.rows_hash, str):
        yield f"`rows_hash` is {data.rows_hash!r}, not a string"
    if len(set(data.classes)) < len(data.classes):
        yield f"two classes have one name: {tuple(data.classes)}"
    if kind.has_classes and not data.classes and data.train.labels is not None:
        yield f"{data.kind} needs classes"
    for name in SPLITS:
        split = getattr(data, name)
        if split is not None or name != "test":
            yield from _of_split(name, split, data, kind)


def _of_split(name: str, split: Any, data: TaskData, kind: TaskKind) -> Iterator[str]:
    if not isinstance(split, Split):
        yield f"{name} is a {type(split).__name__}, not a `Split`"
        return
    columns = {column: getattr(split, column) for column in COLUMNS}
    for column, values in columns.items():
        if values is not None and not isinstance(values, Sized):
            yield f"{name}: `{column}` is a {type(values).__name__}, not a list"
            return
    if not len(split):
        yield f"{name} has no rows"
    for column, values in columns.items():
        if values is not None and len(values) != len(split):
            yield f"{name} has {len(values)} values in `{column}` for {len(split)} texts"
        if values is not None and column in TEXTS:
            spoken = split.chat and column == "text"
            others = (
                value for value in values if not (_is_text(value) or (spoken and _is_chat(value)))
            )
            yield from (f"{name}: `{column}` is text, not {other!r}" for other in others)
    labels: Iterable[Any] = () if split.labels is None else split.labels
    for number, label in enumerate(labels):
        # A number of numpy or torch is as good as one of Python.
        value = label.item() if hasattr(label, "item") else label
        problem = kind.label_problem(value, data.classes)
        if problem:
            yield f"{name} has {problem} (row {number}, counted from 0)"


def _is_text(value: Any) -> bool:
    """Whether a value is a text, or a list of words or choices."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    )


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in value
    )
