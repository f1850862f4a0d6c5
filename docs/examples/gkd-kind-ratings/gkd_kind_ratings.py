"""Ratings, such as 1 to 5 stars: a kind of task for gkd, in one file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gkd_core.api import hookimpl

if TYPE_CHECKING:
    from gkd_core.api import TaskKind


@hookimpl
def gkd_register_kinds() -> Iterable[type[TaskKind]]:
    import torch
    from torch import Tensor

    from gkd_core.api import Classification, Metric

    class Ratings(Classification):
        """Ratings in whole numbers, judged by how far they are from the true ones.

        The prediction is the expected rating, rounded. The metric is Cohen's kappa with quadratic
        weights (Cohen, Psychological Bulletin 1968): 1 if all are right, 0 for chance.
        """

        name = "ratings"
        head = "rating head"
        metric = Metric("kappa", True)
        metrics = ("kappa", "mean_error")

        def score(self, logits: Tensor) -> Tensor:
            ratings = torch.arange(logits.shape[-1], dtype=logits.dtype)
            return (logits.softmax(-1) @ ratings).round().long()

        def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
            loss = torch.nn.functional.cross_entropy(logits, labels)
            error = (predictions - labels).abs().double()
            return {
                "loss": float(loss),
                "kappa": quadratic_kappa(predictions, labels),
                "mean_error": float(error.mean()),
            }

    def quadratic_kappa(predictions: Tensor, labels: Tensor) -> float:
        """Return 1 minus the squared error over that of independent predictions."""
        ours, theirs = predictions.double(), labels.double()
        chance = (ours.unsqueeze(1) - theirs).square().mean()
        observed = (ours - theirs).square().mean()
        return float(1 - observed / chance) if chance > 0 else 1.0

    return [Ratings]
