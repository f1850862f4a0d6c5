"""Tuning the learning rate of each cell by halving, on validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from gkd_core.studies.cell import Cell
from gkd_core.studies.cells import CellMaker, CheckedCell
from gkd_core.studies.design import AxisPoint
from gkd_core.studies.study_config import TuneConfig

Score = Callable[[Cell], float | None]
"""Returns the score of a trial, larger if better; None if it is not over."""


class Halving:
    """The trials of one point: what is to be tried next, and what is best.

    Attributes:
        trials: The trials so far; some may not be over.
        best: The best factor; None while trials are to be run.
    """

    def __init__(
        self, config: TuneConfig, point: AxisPoint, maker: CellMaker, score: Score
    ) -> None:
        self.trials: list[CheckedCell] = []
        self.best: float | None = None
        own = point.with_seed(config.seed)
        left = list(config.lr_factors)
        for share in config.shares:
            rung = {factor: maker.make_trial(own, factor, share) for factor in left}
            self.trials += rung.values()
            known = {factor: score(trial.cell) for factor, trial in rung.items()}
            scores = {factor: found for factor, found in known.items() if found is not None}
            if len(scores) < len(known):
                return
            left = better_half(left, scores)
            if scores[left[0]] == -math.inf:
                break  # all rates failed; the cells show why
        self.best = left[0]


def better_half(factors: Sequence[float], scores: Mapping[float, float]) -> list[float]:
    """Return the better half of factors, the best first; of equals, the smaller one.

    Args:
        factors: The factors.
        scores: The score of each.
    """
    ranked = sorted(factors, key=lambda factor: (-scores[factor], factor))
    return ranked[: math.ceil(len(factors) / 2)]


def cells_of(
    points: Sequence[AxisPoint], maker: CellMaker, tune: TuneConfig | None, score: Score
) -> Iterator[CheckedCell]:
    """Yield the cells that can be named: trials, and cells whose learning rate is settled.

    Args:
        points: All points of the study.
        maker: Makes the cells.
        tune: How learning rates are tuned, if they are.
        score: Returns the score of a trial.
    """
    halvings: dict[str, Halving] = {}
    for point in points:
        if tune is None or maker.prepare(point).refusal:
            yield maker.make(point)
            continue
        if point.group not in halvings:
            halving = Halving(tune, point, maker, score)
            halvings[point.group] = halving
            yield from halving.trials
        best = halvings[point.group].best
        if best is not None:
            yield maker.make(point, best)
