"""`JudgedRows`: the test rows of a finished run, and how good a model of it is on any of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gkd_core.contract.task import Split, TaskData
from gkd_core.evaluation.predictions import STUDENT, Predictions
from gkd_core.evaluation.seed_statistics import RowMetric, drawn_metric, mean_metric
from gkd_core.evaluation.statistics import Rows, Statistic
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.runs.shared_rows import SharedRows
from gkd_core.training.row_measure import measured_by_task

if TYPE_CHECKING:
    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.plugins import Registry

ACCURACY = "accuracy"
"""The metric that is the mean of whether a row is right."""

CLOSE = 1e-5
"""Largest relative difference of a metric that was computed again to the one of the run."""


@dataclass(frozen=True)
class JudgedRows:
    """The test rows of a finished run, and how good a model of it is on any of them.

    Attributes:
        ids: What each row is known by in other runs; rows of equal content are numbered.
        units: What is drawn together with each row: itself, or its group.
        metric: Returns the main metric of some of the rows, by their numbers.
        right: Whether the model is right, per row; None if that is a matter of degree.
    """

    ids: Sequence[str]
    units: Sequence[str]
    metric: Callable[[Rows], RowMetric]
    right: NDArray[np.bool_] | None = None


def task_of(run: FinishedRun, kind: TaskKind, registry: Registry) -> Task:
    """Return the task of a run's last stage.

    Args:
        run: The run.
        kind: The kind of task that was found for it.
        registry: The plugins.
    """
    config = run.resolved.stages[-1].config
    task = config.task.model_copy(update={"kind": kind.name})
    return SharedRows(registry, ()).task(config, task)


def judge_rows(
    predictions: Predictions, kind: TaskKind, task: Task, expected: float, file: str = STUDENT
) -> JudgedRows | None:
    """Return the rows of a run; None if its metric cannot be computed from its predictions.

    Args:
        predictions: The predictions of its models.
        kind: The kind of task.
        task: The task, for metrics that the kind does not have.
        expected: The main metric of the model on all rows, as the run found it.
        file: The name of the model's file.
    """
    rows, model = predictions.rows, predictions.models[file]
    ids = _numbered(rows["hash"].to_pylist())
    groups = rows["group"].to_pylist()
    units = [own if group is None else group for own, group in zip(ids, groups, strict=True)]
    right = _right(model, rows, kind)
    is_mean = right is not None and predictions.about.metric == ACCURACY
    if right is not None and is_mean and _same(right.mean(), expected):
        return JudgedRows(ids, units, lambda chosen: mean_metric(right[chosen]), right)
    measure = _measure(predictions, model, kind, task)
    if measure is None or not _same(measure(np.arange(len(rows))), expected):
        return None
    known = measure
    return JudgedRows(
        ids,
        units,
        lambda chosen: drawn_metric(lambda drawn: known(chosen[drawn])),
        right,
    )


def _same(again: float, expected: float) -> bool:
    return math.isclose(again, expected, rel_tol=CLOSE, abs_tol=CLOSE)


def _numbered(hashes: Sequence[str]) -> list[str]:
    """Return a name for each row: its hash, with a number from the second of equal rows on."""
    times: Counter[str] = Counter()
    names = []
    for found in hashes:
        times[found] += 1
        names.append(found if times[found] == 1 else f"{found}, {times[found]}")
    return names


def _right(model: pa.Table, rows: pa.Table, kind: TaskKind) -> NDArray[np.bool_] | None:
    if "prediction" not in model.column_names or rows["gold"].null_count:
        return None
    right = kind.right(model["prediction"].to_pylist(), rows["gold"].to_pylist())
    return None if right is None else np.array(right, bool)


def _measure(
    predictions: Predictions, model: pa.Table, kind: TaskKind, task: Task
) -> Statistic | None:
    """Return a function that computes the main metric of some rows."""
    rows, metric, classes = predictions.rows, predictions.about.metric, predictions.about.classes
    split = _split(rows, classes)
    evaluation = _evaluation(model, classes)
    if metric in kind.metrics:
        measure = kind.remeasure(evaluation, split, classes)
        return None if measure is None else lambda chosen: measure(chosen)[metric]
    if split.labels is None or evaluation.predictions is None:
        return None
    data = TaskData(kind.name, split, split, split, classes, rows_hash="", source="")
    return lambda chosen: measured_by_task(task, data, split, evaluation, chosen)[metric]


def _split(rows: pa.Table, classes: Sequence[str]) -> Split:
    """Return rows as a run has read them."""
    known: Mapping[str, Any] = {
        name: None if rows[name].null_count == len(rows) else rows[name].to_pylist()
        for name in ("text", "pair", "gold", "group")
    }
    ids = {name: index for index, name in enumerate(classes)}
    labels = known["gold"]
    labels = None if labels is None else [_unnamed(label, ids) for label in labels]
    return Split(known["text"] or [], known["pair"], labels, known["group"])


def _evaluation(model: pa.Table, classes: Sequence[str]) -> Evaluation:
    """Return the predictions of a model for each row."""
    ids = {name: index for index, name in enumerate(classes)}
    columns = {name: _column(model[name].to_pylist()) for name in model.column_names}
    predictions = None
    if "prediction" in columns:
        named = [_unnamed(each, ids) for each in model["prediction"].to_pylist()]
        predictions = _column(named)
        predictions = torch.from_numpy(predictions) if _is_array(predictions) else predictions
    scores = columns.get("scores")
    if _is_array(scores):
        columns["scores"] = torch.from_numpy(scores)
    return Evaluation({}, predictions, columns)


def _column(values: list[Any]) -> Any:
    """Return values as an array if they are numbers, or equally many for each row."""
    try:
        found = np.array(values)
    except ValueError:  # rows of different lengths
        return values
    return found if found.dtype.kind in "bif" else values


def _is_array(column: Any) -> bool:
    return isinstance(column, np.ndarray)


def _unnamed(value: Any, ids: Mapping[str, int]) -> Any:
    """Return the ids of names of classes; what is no such name stays."""
    if isinstance(value, list):
        return [_unnamed(each, ids) for each in value]
    return ids.get(value, value) if isinstance(value, str) else value
