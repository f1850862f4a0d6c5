"""`check_task`: checks of the properties that every source of data must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gkd_core.config.schema import RunConfig, TaskConfig
from gkd_core.contract.task import Split, Task, TaskData
from gkd_core.models.source import load_config
from gkd_core.models.tokenizer import load_tokenizer
from gkd_core.plugins import registry
from gkd_core.testing.ranks import on_ranks


def check_task(
    task: type[Task],
    settings: Mapping[str, Any] | None = None,
    kind: str = "classification",
    ranks: int = 1,
) -> None:
    """Check a source of data.

    Its splits have rows, with as many labels as texts, of the type that the kind needs. Reading is
    reproducible, and the hash is the same exactly when the rows are. Default settings are settings
    of a run, and a default teacher can be built. Its metrics are numbers, and its main metric is
    one of them or of its kind.

    Args:
        task: The class.
        settings: Settings of the table `task`, except `name`.
        kind: What to predict if neither the settings nor the task decide it.
        ranks: Number of processes. With 2, they must read the same rows; the class stands at the
            top of a module.

    Raises:
        AssertionError: A property does not hold; the message says which.
        DataError: The rows cannot be read.
    """
    settings = dict(settings or {})
    data = _load(task, settings, kind, seed=0)
    _check_data(task, settings, data)
    _check_hash(task, data, _load(task, settings, kind, seed=0), "read again")
    _check_hash(task, data, _load(task, settings, kind, seed=1), "read with another seed")
    _check_defaults(task, data.kind)
    _check_teacher(task, settings, data)
    _check_metrics(_make(task, settings), data)
    if ranks > 1:
        hashes = on_ranks(ranks, _hash, task, settings, kind)
        assert {data.rows_hash} == set(hashes), (
            f"{task.name}: another process reads rows of another hash; rows and hash must not "
            "depend on the process, for instance on the order of a set"
        )


def _load(task: type[Task], settings: Mapping[str, Any], kind: str, seed: int) -> TaskData:
    made = _make(task, settings)
    made.check()
    return made.load(made.kind or kind, seed)


def _make(task: type[Task], settings: Mapping[str, Any]) -> Task:
    return task(TaskConfig(name=task.name, **settings), registry().kinds)


def _hash(task: type[Task], settings: Mapping[str, Any], kind: str) -> str:
    return _load(task, settings, kind, seed=0).rows_hash


def _check_data(task: type[Task], settings: Mapping[str, Any], data: TaskData) -> None:
    name, wanted = task.name, _make(task, settings).kind
    assert wanted in (None, data.kind), f"{name}: task.kind = {wanted!r}, but rows of {data.kind!r}"
    assert data.source, f"{name}: `source` does not describe the data"
    has_classes = registry().kind(data.kind).has_classes
    assert data.classes or not has_classes, f"{name}: {data.kind} needs classes"
    assert len(set(data.classes)) == len(data.classes), f"{name}: two classes have one name"
    for part in ("train", "validation", "test"):
        split = getattr(data, part)
        if split is not None:
            _check_split(f"{name}: {part}", split, data)


def _check_split(where: str, split: Split, data: TaskData) -> None:
    assert len(split) > 0, f"{where} has no rows"
    for name in ("text", "pair", "labels", "group", "target"):
        column = getattr(split, name)
        if column is not None:
            assert len(column) == len(split), f"{where} has {len(column)} values in `{name}`"
            if name != "labels":
                assert all(map(_is_text, column)), f"{where}: `{name}` is text"
    if split.labels is None:
        return
    for label in split.labels:
        problem = registry().kind(data.kind).label_problem(label, data.classes)
        assert not problem, f"{where} has {problem}"


def _is_text(value: Any) -> bool:
    """Whether a value is a text, or a list of words or choices."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    )


def _check_hash(task: type[Task], one: TaskData, other: TaskData, when: str) -> None:
    same_rows, same_hash = _rows(one) == _rows(other), one.rows_hash == other.rows_hash
    assert same_rows == same_hash, (
        f"{task.name}: {when}, the rows are {'the same' if same_rows else 'others'} and "
        f"`rows_hash` is {'the same' if same_hash else 'another'}; it must follow the rows"
    )
    if when == "read again":
        assert same_rows, f"{task.name}: read again with the same seed, the rows are others"


def _rows(data: TaskData) -> list[Any]:
    splits = [astuple(s) for s in (data.train, data.validation, data.test) if s is not None]
    return [[None if c is None else list(c) for c in split] for split in splits]


def _check_defaults(task: type[Task], kind: str) -> None:
    unknown = set(task.defaults(kind)) - set(RunConfig.model_fields)
    assert not unknown, f"{task.name}: `defaults` has {sorted(unknown)}, no tables of a run file"


def _check_teacher(task: type[Task], settings: Mapping[str, Any], data: TaskData) -> None:
    teacher = _make(task, settings).default_teacher(data, "small")
    if teacher is None:
        return
    with TemporaryDirectory() as folder:
        teacher.build(Path(folder))
        load_config(folder, False, f"the default teacher of {task.name}")
        load_tokenizer(folder, False, f"the default teacher of {task.name}")


def _check_metrics(task: Task, data: TaskData) -> None:
    """Measure the labels as if they were predictions, where they have the same form."""
    kind, rows = registry().kind(data.kind), data.validation
    found: Mapping[str, float] = {}
    if data.kind == "classification" and rows.labels is not None:
        found = task.measure(rows, torch.tensor(list(rows.labels)), data)
        for name, value in found.items():
            assert isfinite(value), f"{task.name}: the metric {name!r} is {value!r}"
    known = {kind.metric.name, *kind.metrics, *found}
    assert task.metric is None or kind.is_lm or task.metric.name in known, (
        f"{task.name}: `metric` is {task.metric.name!r}, which is none of {sorted(known)}"
    )
