"""`check_task`: checks of the properties that every source of data must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gkd_core.config.schema import RunConfig, TaskConfig
from gkd_core.contract.task import COLUMNS, SPLITS, Task, TaskData
from gkd_core.models.source import load_config
from gkd_core.models.tokenizer import load_tokenizer
from gkd_core.plugins import registry
from gkd_core.runs.task_checks import problems
from gkd_core.testing.ranks import on_ranks


def check_task(
    task: type[Task],
    options: Mapping[str, Any] | None = None,
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
        options: Options of the task that differ from their defaults.
        settings: Settings of the table `task` that every task has, except `name`.
        kind: What to predict if neither the settings nor the task decide it.
        ranks: Number of processes. With 2, they must read the same rows; the class stands at the
            top of a module.

    Raises:
        AssertionError: A property does not hold; the message says which.
        DataError: The rows cannot be read.
    """
    make = partial(_make, task, options or {}, settings or {})
    data = _load(make, kind, seed=0)
    _check_data(make(), data)
    _check_hash(task, data, _load(make, kind, seed=0), "read again")
    _check_hash(task, data, _load(make, kind, seed=1), "read with another seed")
    _check_defaults(task, data.kind)
    _check_teacher(make(), data)
    _check_metrics(make(), data)
    if ranks > 1:
        hashes = on_ranks(ranks, _hash, make, kind)
        assert {data.rows_hash} == set(hashes), (
            f"{task.name}: another process reads rows of another hash; rows and hash must not "
            "depend on the process, for instance on the order of a set"
        )


def _make(task: type[Task], options: Mapping[str, Any], settings: Mapping[str, Any]) -> Task:
    config = TaskConfig(name=task.name, **settings)
    return task(config, registry().kinds, task.Config(**options))


def _load(make: Callable[[], Task], kind: str, seed: int) -> TaskData:
    made = make()
    made.check()
    return made.load(made.kind or kind, seed)


def _hash(make: Callable[[], Task], kind: str) -> str:
    return _load(make, kind, seed=0).rows_hash


def _check_data(task: Task, data: TaskData) -> None:
    name, wanted = task.name, task.kind
    assert wanted in (None, data.kind), f"{name}: task.kind = {wanted!r}, but rows of {data.kind!r}"
    assert data.source, f"{name}: `source` does not describe the data"
    problem = next(problems(data, registry().kinds), None)
    assert problem is None, f"{name}: {problem}"


def _check_hash(task: type[Task], one: TaskData, other: TaskData, when: str) -> None:
    same_rows, same_hash = _rows(one) == _rows(other), one.rows_hash == other.rows_hash
    assert same_rows == same_hash, (
        f"{task.name}: {when}, the rows are {'the same' if same_rows else 'others'} and "
        f"`rows_hash` is {'the same' if same_hash else 'another'}; it must follow the rows"
    )
    if when == "read again":
        assert same_rows, f"{task.name}: read again with the same seed, the rows are others"


def _rows(data: TaskData) -> list[Any]:
    splits = [split for name in SPLITS if (split := getattr(data, name)) is not None]
    columns = ((getattr(split, name) for name in COLUMNS) for split in splits)
    return [[None if column is None else list(column) for column in each] for each in columns]


def _check_defaults(task: type[Task], kind: str) -> None:
    tables = {
        "defaults": task.defaults(kind),
        "adjustments": task.adjustments("recipe", "stage", {"task": {"kind": kind}}),
    }
    for source, found in tables.items():
        unknown = set(found) - set(RunConfig.model_fields)
        wrong = f"`{source}` has {sorted(unknown)}, no tables of a run file"
        assert not unknown, f"{task.name}: {wrong}"


def _check_teacher(task: Task, data: TaskData) -> None:
    teacher = task.default_teacher(data, "small")
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
    # Labels are predictions, too, where each row has a class or a value.
    is_class = kind.output in ("classes", "value") and kind.predicted == "sample"
    if is_class and rows.labels is not None:
        found = task.measure(rows, torch.tensor(list(rows.labels)), data)
        for name, value in found.items():
            assert isfinite(value), f"{task.name}: the metric {name!r} is {value!r}"
    known = {kind.metric.name, *kind.metrics, *found}
    assert task.metric is None or kind.is_lm or task.metric.name in known, (
        f"{task.name}: `metric` is {task.metric.name!r}, which is none of {sorted(known)}"
    )
