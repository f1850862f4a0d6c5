"""Rows on which a student and its teacher differ, those on which they differ most first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from gkd_core.errors import DataError
from gkd_core.evaluation.predictions import STUDENT, Predictions, pair_rows
from gkd_core.training.stage_spec import BASELINE


@dataclass(frozen=True)
class Disagreement:
    """A row, and what student and teacher say of it.

    Attributes:
        row: Its number in the split.
        text: Its text.
        pair: Its second text, or None.
        gold: What is right, or None if that is unknown.
        teacher: The teacher's prediction.
        student: The student's.
        distance: How far apart they are: the divergence of the student's distribution from the
            teacher's, KL(teacher || student); without distributions, the distance of the scores.
    """

    row: int
    text: str
    pair: Any
    gold: Any
    teacher: Any
    student: Any
    distance: float


def disagreements(predictions: Predictions) -> list[Disagreement]:
    """Return all rows, sorted by how much student and teacher disagree.

    Args:
        predictions: The predictions of a run; the first teacher is compared.

    Raises:
        DataError: There are none of a teacher, or they have no scores that could be compared.
    """
    teachers = [name for name in predictions.models if name not in (STUDENT, BASELINE)]
    if not teachers or STUDENT not in predictions.models:
        raise DataError("the run has no predictions of both a student and a teacher")
    student, teacher = predictions.models[STUDENT], predictions.models[teachers[0]]
    if "scores" not in student.column_names or "scores" not in teacher.column_names:
        raise DataError(f"predictions of {predictions.about.kind} have no scores to compare")
    paired = pair_rows(student["hash"].to_pylist(), teacher["hash"].to_pylist())
    ours, theirs = student.take(paired.ours).to_pylist(), teacher.take(paired.theirs).to_pylist()
    rows = predictions.rows.take(paired.ours).to_pylist()
    found = [
        Disagreement(
            row=row["row"],
            text=row["text"],
            pair=row["pair"],
            gold=row["gold"],
            teacher=known["prediction"],
            student=own["prediction"],
            distance=_distance(own["scores"], known["scores"]),
        )
        for row, own, known in zip(rows, ours, theirs, strict=True)
    ]
    return sorted(found, key=lambda each: -each.distance)


def _distance(student: Any, teacher: Any) -> float:
    own, known = (np.atleast_1d(np.asarray(each, np.float64)) for each in (student, teacher))
    if own.shape != known.shape or own.ndim != 1:
        raise DataError("the scores of student and teacher have different shapes")
    if len(own) == 1:
        return float(abs(own[0] - known[0]))
    kept = np.isfinite(known)  # a choice that a row does not have is excluded by -inf
    log_q, log_p = log_softmax(own[kept]), log_softmax(known[kept])
    return float((np.exp(log_p) * (log_p - log_q)).sum())
