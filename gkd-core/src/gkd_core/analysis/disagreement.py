"""Rows on which a student and its teacher differ, those on which they differ most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gkd_core.errors import DataError
from gkd_core.evaluation.pairs import Floats, item_logits, mean_kl, measured_divergences
from gkd_core.evaluation.predictions import STUDENT, Predictions, pair_rows
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.training.stage_spec import BASELINE


@dataclass(frozen=True)
class Disagreement:
    """A row with the predictions of student and teacher.

    Attributes:
        row: Its number in the split.
        text: Its text.
        pair: Its second text, or None.
        gold: What is right, or None if that is unknown.
        teacher: The teacher's prediction; None in language modeling.
        student: The student's.
        distance: How far apart they are: the divergence of the student's distributions from the
            teacher's, the mean of KL(teacher || student); without distributions, the distance of
            the scores.
    """

    row: int
    text: str
    pair: Any
    gold: Any
    teacher: Any
    student: Any
    distance: float


def disagreements(predictions: Predictions, kind: TaskKind) -> list[Disagreement]:
    """Return all rows, sorted by how much student and teacher disagree.

    Args:
        predictions: The predictions of a run; the first teacher is compared.
        kind: The kind of task.

    Raises:
        DataError: There are none of a teacher, or they have nothing that could be compared.
    """
    teachers = [name for name in predictions.models if name not in (STUDENT, BASELINE)]
    if not teachers or STUDENT not in predictions.models:
        raise DataError("the run has no predictions of both a student and a teacher")
    student, teacher = predictions.models[STUDENT], predictions.models[teachers[0]]
    paired = pair_rows(student["hash"].to_pylist(), teacher["hash"].to_pylist())
    student, teacher = student.take(paired.ours), teacher.take(paired.theirs)
    distances = _distances(student, teacher, kind)
    rows = predictions.rows.take(paired.ours).to_pylist()
    every = zip(rows, student.to_pylist(), teacher.to_pylist(), distances, strict=True)
    found = [
        Disagreement(
            row=row["row"],
            text=row["text"],
            pair=row["pair"],
            gold=row["gold"],
            teacher=known.get("prediction"),
            student=own.get("prediction"),
            distance=float(distance),
        )
        for row, own, known, distance in every
    ]
    return sorted(found, key=lambda each: -each.distance)


def _distances(student: pa.Table, teacher: pa.Table, kind: TaskKind) -> Sequence[float]:
    """Return the distance between student and teacher in each row."""
    if not kind.keeps_scores:
        measured = measured_divergences(student, teacher)
        if measured is None:
            raise DataError(
                "the run has no record of how far student and teacher are apart in each row"
            )
        return list(map(float, measured))
    if any("scores" not in table.column_names for table in (student, teacher)):
        raise DataError(f"predictions of {kind} have no scores to compare")
    own, known = item_logits(student, kind), item_logits(teacher, kind)
    if own is None or known is None:
        return _apart(student["scores"].to_pylist(), teacher["scores"].to_pylist())
    return [_divergence(*both) for both in zip(own, known, strict=True)]


def _divergence(own: Floats, known: Floats) -> float:
    """Return the mean divergence over the items that both models have read in a row."""
    if own.shape[1:] != known.shape[1:]:
        raise DataError("the scores of student and teacher have different shapes")
    count = min(len(own), len(known))
    return mean_kl(known[:count], own[:count]) if count else 0.0


def _apart(own: Sequence[Any], known: Sequence[Any]) -> list[float]:
    """Return the distances of values, or of vectors of the same width."""
    pairs = zip(map(np.atleast_1d, own), map(np.atleast_1d, known), strict=True)
    try:
        return [float(np.linalg.norm(mine - theirs)) for mine, theirs in pairs]
    except ValueError as error:
        raise DataError("the scores of student and teacher have different shapes") from error
