"""The scores of the candidates and the selection of the assistant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CandidateCriterion:
    """The criterion by which candidates are compared.

    Attributes:
        weight: Lambda, the value of being small in units of performance.
        target: Scale of the student; an assistant is never smaller.
    """

    weight: float
    target: float

    def trade_off(self, scale: float, performance: float) -> float:
        """Return performance + lambda * (1 - scale)."""
        return performance + self.weight * (1 - scale)

    def select(self, performances: Mapping[float, float]) -> float:
        """Return the scale with the best trade-off, the largest in case of ties.

        A scale below the student's is replaced by the student's.

        Args:
            performances: Performance of each candidate by scale; higher is better.
        """
        order = sorted(performances, reverse=True)
        best = max(order, key=lambda scale: self.trade_off(scale, performances[scale]))
        return max(best, self.target)


@dataclass
class CandidateScores:
    """The scores of the candidates during joint training.

    Attributes:
        metrics: Best metric of each candidate so far, by scale.
        performances: The same as performances between 0 and 1; higher is better.
        best: Best trade-off so far.
        selected: Scale of the candidate with the best trade-off.
        step: Step at which it was reached.
    """

    metrics: dict[float, float] = field(default_factory=dict)
    performances: dict[float, float] = field(default_factory=dict)
    best: float = -math.inf
    selected: float | None = None
    step: int = 0

    def judge(
        self,
        found: Mapping[float, float],
        higher_is_better: bool,
        choice: CandidateCriterion,
        step: int,
    ) -> bool:
        """Record an evaluation of all candidates; return whether the best trade-off improved.

        Args:
            found: Metric of each candidate, by scale.
            higher_is_better: Direction of the metric.
            choice: How candidates are compared.
            step: Optimizer steps completed.
        """
        for scale, metric in found.items():
            performance = as_performance(metric, higher_is_better)
            if performance > self.performances.get(scale, -math.inf):
                self.metrics[scale], self.performances[scale] = metric, performance
        offers = [choice.trade_off(scale, value) for scale, value in self.performances.items()]
        if max(offers) <= self.best:
            return False
        self.best, self.step = max(offers), step
        self.selected = choice.select(self.performances)
        return True


def as_performance(metric: float, higher_is_better: bool) -> float:
    """Return a metric as a performance between 0 and 1; higher is better.

    Perplexity becomes its inverse: the geometric mean of the token probabilities.
    """
    return metric if higher_is_better else 1 / max(metric, 1.0)
