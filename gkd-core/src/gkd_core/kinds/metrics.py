"""Metrics of predictions: the main metric of a kind, and how metrics are computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """The main metric of a kind of task.

    Attributes:
        name: Key in the metrics.
        higher_is_better: Whether larger values are better.
    """

    name: str
    higher_is_better: bool

    def better(self, new: float, old: float | None) -> bool:
        """Return whether `new` beats `old`; everything beats NaN."""
        if old is None or math.isnan(old):
            return True
        return new > old if self.higher_is_better else new < old

    def share(self, student: float, teacher: float) -> float:
        """Return the share of the teacher's quality that the student keeps; 1 is equal.

        NaN if that has no meaning: a value is not finite, or what would be the whole is not above
        0.
        """
        kept, whole = (student, teacher) if self.higher_is_better else (teacher, student)
        return kept / whole if whole > 0 and math.isfinite(kept / whole) else math.nan


def mean_loss(sums: Iterable[tuple[float, int]]) -> float:
    """Return the mean over all items, given sums of losses and numbers of items."""
    found = list(sums)
    return sum(total for total, _ in found) / max(sum(count for _, count in found), 1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of the right predictions."""
    return float((predictions == labels).double().mean())


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Return the mean of the F1 scores of the classes that occur.

    Args:
        predictions: Class id of each row.
        labels: The true ones.
    """
    size = int(max(predictions.max(), labels.max())) + 1
    hits = torch.bincount(labels[predictions == labels], minlength=size)
    marked = torch.bincount(torch.cat([predictions, labels]), minlength=size)
    return float(f1_scores(hits, marked)[marked > 0].mean())


def f1_of_class(predictions: Tensor, labels: Tensor, index: int) -> float:
    """Return the F1 score of one class."""
    found, true = predictions == index, labels == index
    return f1_of_counts(int((found & true).sum()), int(found.sum() + true.sum()))


def f1_scores(hits: Tensor, marked: Tensor) -> Tensor:
    """Return the F1 score of each class, fp64 `[C]`.

    Args:
        hits: Number of right predictions of each.
        marked: Number of predictions plus number of true ones of each; the score is 0 without any.
    """
    return torch.where(marked > 0, 2 * hits.double() / marked, 0.0)


def f1_of_counts(hits: float | Tensor, marked: float | Tensor) -> float:
    """Return the F1 score: twice the hits over all that is predicted and all that is true.

    Args:
        hits: Number of right predictions.
        marked: Number of predictions plus number of true ones; the score is 0 without any.
    """
    return float(2 * hits / marked) if marked > 0 else 0.0


def matthews(predictions: Tensor, labels: Tensor) -> float:
    """Return Matthews' correlation of two classes; 0 where one side does not vary."""
    return correlation(predictions.double(), labels.double())


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation; 0 where one side does not vary."""
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return float(x @ y / norm) if norm > 0 else 0.0


def ranks(x: Tensor) -> Tensor:
    """Return the rank of each value; equal values share their mean rank."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean: Tensor = last - (counts.double() - 1) / 2
    return mean[inverse]


def correlations(values: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the correlations of Pearson and Spearman."""
    values, labels = values.double(), labels.double()
    return {
        "pearson": correlation(values, labels),
        "spearman": correlation(ranks(values), ranks(labels)),
    }
