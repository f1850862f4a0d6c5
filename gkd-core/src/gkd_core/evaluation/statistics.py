"""Uncertainty of what is measured: bootstrap intervals, McNemar's test, correlations.

Everything is deterministic: the bootstrap draws from a generator with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]
"""Indices of rows; a row may occur several times."""

Statistic: TypeAlias = Callable[[Rows], float]
"""Returns a number that some rows, given by their indices, amount to, such as their accuracy."""

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 8
"""Points below which a correlation says nothing."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        level: The share of such intervals that contain the true value.
    """

    low: float
    high: float
    level: float = LEVEL

    def __format__(self, number: str) -> str:
        """Return both ends in a format for numbers: `+.4f` gives `+0.0125 to +0.0390`."""
        return f"{self.low:{number}} to {self.high:{number}}"


@dataclass(frozen=True)
class SampleEstimate:
    """A statistic of a sample.

    Attributes:
        value: Its value on the sample.
        interval: Its interval; None if too few draws have a value.
        n: Number of rows, of groups of rows that were drawn from, or of runs.
    """

    value: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class McNemar:
    """Whether two models err on different rows more often than chance explains.

    Attributes:
        only_first: Rows that only the first model gets right.
        only_second: Rows that only the second model gets right.
        n: All rows.
        p: Two-sided exact p-value; 1 if the models are right on the same rows.
    """

    only_first: int
    only_second: int
    n: int
    p: float


@dataclass(frozen=True)
class Correlation:
    """A correlation of two series, or the reason why there is none.

    Attributes:
        n: Number of points at which both are finite.
        value: The coefficient, or None.
        interval: Its bootstrap interval; None if there is no value.
        reason: Why there is no value; empty if there is one.
    """

    n: int
    value: float | None = None
    interval: Interval | None = None
    reason: str = ""


def bootstrap(
    statistic: Statistic,
    rows: int,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SampleEstimate:
    """Return a statistic of rows with its percentile bootstrap interval.

    Args:
        statistic: Computes the number from indices of rows; draws for which it is not finite do not
            count.
        rows: Number of rows.
        groups: A value per row. Rows with equal values depend on each other, such as the answers to
            one question, and are drawn together.
        level: Level of the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no rows, or `groups` has another length.
    """
    units = _units(rows, groups)
    random = np.random.default_rng(seed)
    drawn = (random.integers(len(units), size=len(units)) for _ in range(resamples))
    together = partial(_joined, units, alone=groups is None)
    values = np.array([statistic(together(chosen)) for chosen in drawn], np.float64)
    return SampleEstimate(
        float(statistic(np.arange(rows))), _percentiles(values, level), len(units)
    )


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    rows: int,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SampleEstimate:
    """Return the difference `first - second` of two statistics on the same rows.

    Every draw evaluates both on the same rows, so what makes a row hard for both cancels out. Other
    arguments as for `bootstrap`.
    """
    return bootstrap(
        lambda chosen: first(chosen) - second(chosen),
        rows,
        groups=groups,
        level=level,
        resamples=resamples,
        seed=seed,
    )


def p_text(p: float) -> str:
    """Return a p-value as text."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Return McNemar's exact test of two models on the same rows.

    Args:
        first: Whether the first model is right, per row.
        second: Whether the second model is right, per row.

    Raises:
        ValueError: The lengths differ.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    if one.shape != other.shape:
        raise ValueError(f"{one.size} and {other.size} rows cannot be paired")
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    unequal = only_first + only_second
    p = float(stats.binomtest(only_first, unequal).pvalue) if unequal else 1.0
    return McNemar(only_first, only_second, one.size, p)


def beats_chance(right: int, rows: int, chance: float, *, level: float = LEVEL) -> bool:
    """Return whether more rows are right than chance explains (one-sided binomial test).

    Args:
        right: Number of rows that are right.
        rows: Number of rows.
        chance: Share of the rows that are right by chance.
        level: Level of the test.
    """
    test = stats.binomtest(right, rows, chance, alternative="greater")
    return bool(test.pvalue < 1 - level)


def pearson(x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, seed: int = 0) -> Correlation:
    """Return Pearson's correlation; refused below `FEWEST` points or if a side does not vary.

    Args:
        x: The first series.
        y: The second series, of the same length. Points that are not finite on either side are left
            out.
        level: Level of the interval.
        seed: Seed of the bootstrap.
    """
    return _correlation(x, y, _same, level, seed)


def spearman(x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, seed: int = 0) -> Correlation:
    """Return Spearman's rank correlation; everything else is as for `pearson`."""
    return _correlation(x, y, _ranks, level, seed)


def _correlation(
    x: ArrayLike, y: ArrayLike, convert: Callable[[Floats], Floats], level: float, seed: int
) -> Correlation:
    points = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    points = points[:, np.isfinite(points).all(0)]
    n = points.shape[1]
    if n < FEWEST:
        return Correlation(n, reason=f"{n} points; {FEWEST} are needed")
    if (points == points[:, :1]).all(1).any():
        return Correlation(n, reason="one side does not vary")
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    value = float(_coefficients(*convert(points)))
    values = _coefficients(*(convert(side[drawn]) for side in points))
    return Correlation(n, value, _percentiles(values, level))


def _coefficients(x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation along the last dimension; NaN where one side does not vary."""
    varies = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    norms = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    empty = np.full(norms.shape, math.nan)
    found: Floats = np.divide((x * y).sum(-1), norms, out=empty, where=varies)
    return found


def _percentiles(values: Floats, level: float) -> Interval | None:
    """Return the interval that contains the middle share `level` of the finite values."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _units(rows: int, groups: Sequence[Hashable] | None) -> Sequence[Rows]:
    """Return the rows that are drawn together."""
    if rows < 1:
        raise ValueError("there are no rows to draw from")
    if groups is None:
        return list(np.arange(rows)[:, None])
    if len(groups) != rows:
        raise ValueError(f"{len(groups)} groups were given for {rows} rows")
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [np.array(each) for each in members.values()]


def _joined(units: Sequence[Rows], chosen: Rows, alone: bool) -> Rows:
    """Return the rows of the chosen units; a unit of one row has the index of its row."""
    return chosen if alone else np.concatenate([units[unit] for unit in chosen])


def _same(values: Floats) -> Floats:
    return values


def _ranks(values: Floats) -> Floats:
    ranked: Any = stats.rankdata(values, axis=-1)
    return np.asarray(ranked, np.float64)
