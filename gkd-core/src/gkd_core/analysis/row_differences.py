"""What predictions of rows say of two models: how sure a difference is, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from gkd_core.evaluation.statistics import McNemar, SampleEstimate, mcnemar, paired_bootstrap

if TYPE_CHECKING:
    import pyarrow as pa

    from gkd_core.analysis.comparison import Comparison
    from gkd_core.evaluation.predictions import Predictions

CLOSE = 1e-5
"""Difference of a metric from the mean over rows that rounding may make."""


@dataclass(frozen=True)
class ModelDifference:
    """The quality of the student minus that of another model, on the same rows.

    Attributes:
        other: The name of the other model.
        estimate: The difference of the metric, with its interval.
        test: The exact test of who errs more often; None if predictions are not right or wrong.
    """

    other: str
    estimate: SampleEstimate
    test: McNemar | None


@dataclass(frozen=True)
class Disagreement:
    """A row of which student and teacher say different things.

    Attributes:
        row: Its number in the split.
        text: What the models read.
        gold: Its label; empty if it has none.
        teacher: What the teacher says.
        student: What the student says.
        distance: Total variation between their probabilities, from 0 to 1.
    """

    row: int
    text: str
    gold: str
    teacher: str
    student: str
    distance: float


def model_differences(comparison: Comparison, predictions: Predictions) -> list[ModelDifference]:
    """Return how the student, the last model, differs from every other in the main metric.

    Nothing is returned if the metric is no mean over rows, such as an F1 score.
    """
    values = [_per_row(comparison, predictions, number) for number in range(len(comparison.rows))]
    found = [value for value in values if value is not None]
    if len(found) < len(values) or len(values) < 2:
        return []
    groups = predictions.rows["group"].to_pylist()
    student = found[-1]
    return [
        ModelDifference(
            row.name,
            paired_bootstrap(
                lambda rows: float(student[rows].mean()),
                lambda rows, other=other: float(other[rows].mean()),  # type: ignore[misc]
                len(student),
                groups=None if None in groups else groups,
            ),
            mcnemar(student == 1, other == 1) if _is_right_or_wrong(student) else None,
        )
        for row, other in zip(comparison.rows[:-1], found[:-1], strict=True)
    ]


def disagreements(predictions: Predictions, most: int) -> list[Disagreement]:
    """Return the rows on which student and (first) teacher differ most, the worst first.

    Args:
        predictions: The predictions; the student's file is `student`, a teacher's the first.
        most: How many rows to return.
    """
    others = [name for name in predictions.models if name not in ("student", "baseline")]
    if not others or "student" not in predictions.models or not predictions.about.classes:
        return []
    teacher, student = predictions.models[others[0]], predictions.models["student"]
    ours, theirs = _probabilities(student), _probabilities(teacher)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return []
    distances = 0.5 * np.abs(ours - theirs).sum(1)
    worst = np.argsort(-distances, kind="stable")[:most]
    return [_disagreement(predictions, teacher, student, int(i), distances) for i in worst]


def _disagreement(
    predictions: Predictions,
    teacher: pa.Table,
    student: pa.Table,
    index: int,
    distances: NDArray[np.float64],
) -> Disagreement:
    row = {name: predictions.rows[name][index].as_py() for name in predictions.rows.column_names}
    texts = (row["text"], row["pair"])
    return Disagreement(
        row["row"],
        " / ".join(_plain(text) for text in texts if text is not None),
        "" if row["gold"] is None else str(row["gold"]),
        str(teacher["prediction"][index]),
        str(student["prediction"][index]),
        float(distances[index]),
    )


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else " | ".join(map(str, text))


def _probabilities(table: pa.Table) -> NDArray[np.float64] | None:
    """Return the probabilities of classes, `[N, C]`; None if the scores are not of classes."""
    if "scores" not in table.column_names:
        return None
    scores = table["scores"].to_pylist()
    if not scores or not all(isinstance(s, list) and len(s) == len(scores[0]) for s in scores):
        return None
    try:
        return np.asarray(softmax(np.array(scores, np.float64), axis=1))
    except ValueError:  # lists of lists: not one decision per row
        return None


def _per_row(
    comparison: Comparison, predictions: Predictions, number: int
) -> NDArray[np.float64] | None:
    """Return a model's values whose mean is the main metric; None if there are none."""
    row = comparison.rows[number]
    file = next((f for f, name in predictions.names.items() if name == row.name), None)
    if file is None:
        return None
    for values in _candidates(predictions, predictions.models[file]):
        if abs(values.mean() - row.metrics[comparison.metric]) < CLOSE:
            return values
    return None


def _candidates(predictions: Predictions, table: pa.Table) -> Iterator[NDArray[np.float64]]:
    gold = predictions.rows["gold"].to_pylist()
    if "prediction" in table.column_names and None not in gold:
        said = table["prediction"].to_pylist()
        yield np.array([one == right for one, right in zip(said, gold, strict=True)], np.float64)
    if "loss" in table.column_names:
        losses = np.array(table["loss"].to_pylist(), np.float64)
        if losses.ndim == 1 and len(losses):
            yield losses


def _is_right_or_wrong(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0, 1)).all())
