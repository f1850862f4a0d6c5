"""The main metric of a stage for some of the rows, as the bootstrap draws them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.data.holdout import take

if TYPE_CHECKING:
    from gkd_core.contract.task import Split, Task, TaskData
    from gkd_core.evaluation.statistics import Rows, Statistic
    from gkd_core.kinds.task_kind import Evaluation
    from gkd_core.training.stage_spec import StageSpec


def row_measure(spec: StageSpec, split: Split, evaluation: Evaluation) -> Statistic | None:
    """Return a function that computes the main metric of some rows, given their numbers.

    Args:
        spec: The stage.
        split: The rows.
        evaluation: What a model says of them.

    Returns:
        The function; None if the rows have no labels, or the kind of task cannot measure a part of
        them.
    """
    name = spec.metric_on(split).name
    if spec.is_unlabeled(split):
        return None
    if name not in spec.kind.metrics:
        task, data = spec.task, spec.data
        return lambda rows: measured_by_task(task, data, split, evaluation, rows)[name]
    measure = spec.kind.remeasure(evaluation, split, spec.data.classes)
    return None if measure is None else lambda rows: measure(rows)[name]


def measured_by_task(
    task: Task, data: TaskData, split: Split, evaluation: Evaluation, rows: Rows
) -> dict[str, float]:
    """Return the metrics of a task for some rows; a group drawn twice counts as two.

    Args:
        task: The task.
        data: Its data.
        split: All rows.
        evaluation: What a model says of them.
        rows: Numbers of the rows; one may occur several times.
    """
    chosen = take(split, rows.tolist())
    if chosen.group is not None:
        times: Counter[int] = Counter()
        copies = []
        for row, group in zip(rows.tolist(), chosen.group, strict=True):
            times[row] += 1
            copies.append(group if times[row] == 1 else f"{group}, copy {times[row]}")
        chosen = replace(chosen, group=copies)
    predictions = evaluation.predictions
    assert predictions is not None, "a task has no metrics of its own in language modeling"
    if isinstance(predictions, Tensor):
        found: Tensor | list[object] = predictions[torch.from_numpy(rows)]
    else:
        found = [predictions[row] for row in rows]
    return dict(task.measure(chosen, found, data))
