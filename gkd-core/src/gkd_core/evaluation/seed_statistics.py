"""Differences between models that were trained with several seeds and judged on the same rows.

Two things are drawn at random: the rows, and what a seed decides. Rows are drawn again by the
bootstrap. Three seeds cannot be: drawn again, they would show two thirds of their variance, and up
to a fifth of all differences would be called real where none is. Their variance is unknown instead,
as in a t-test, so that few seeds make wide intervals. Where several ways to train are compared,
what the others show of this variance counts too, as far as they agree: `seed_prior`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from gkd_core.evaluation.statistics import (
    FEWEST,
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    Rows,
    Statistic,
)

Counts: TypeAlias = Floats
"""The number of times that each row was drawn, `[draws, rows]`."""

RowMetric: TypeAlias = Callable[[Counts], Floats]
"""Returns the metric of each draw of the rows, `[draws]`."""

FEWEST_VARIANCES = 3
"""Comparisons below which nothing is learned from the others."""

FEWEST_SEEDS = 6
"""Seeds below which no Wilcoxon test can reach a p-value of 0.05."""

SCALES = 1000
"""Values of the seeds' unknown variance that are tried."""


@dataclass(frozen=True)
class SeedPair:
    """Two models that were trained with the same seed, on the rows that both predicted.

    Attributes:
        seed: The seed.
        units: A value for each row. Rows with equal values are drawn together: those of a group,
            and the same row in the pairs of other seeds.
        first: The metric of the first model.
        second: The metric of the second model.
    """

    seed: int
    units: Sequence[Hashable]
    first: RowMetric
    second: RowMetric


Setting: TypeAlias = Sequence[SeedPair]
"""Pairs that differ by their seed only."""


@dataclass(frozen=True)
class SeedPrior:
    """The variance over seeds, as estimated from other comparisons.

    Attributes:
        variance: The variance of the difference of a seed.
        freedom: Degrees of freedom that it counts for; more, the more the others agree.
    """

    variance: float
    freedom: float


UNKNOWN = SeedPrior(0.0, 0.0)
"""Nothing known of the variance over seeds."""


@dataclass(frozen=True)
class SeedDifference:
    """The first model minus the second, over seeds and rows.

    Attributes:
        value: The mean over tasks, of the mean over their settings, of the mean over seeds.
        interval: Its confidence interval; None if there are too few rows.
        p: Two-sided p-value of there being no difference; None if there are too few rows.
        seeds: Number of seeds; in the setting with the fewest. With 1, `interval` and `p` are about
            other rows only, and say nothing about other seeds.
        by_seed: The difference of each seed that all settings have, in the order of seeds.
    """

    value: float
    interval: Interval | None
    p: float | None
    seeds: int
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class SeedTest:
    """Wilcoxon's signed-rank test over seeds, or the reason why there is none.

    Attributes:
        n: Number of seeds.
        p: Two-sided p-value, or None.
        reason: Why there is no p-value; empty if there is one.
    """

    n: int
    p: float | None = None
    reason: str = ""


def mean_metric(values: ArrayLike) -> RowMetric:
    """Return the metric that is the mean of a value of each row, such as accuracy.

    Args:
        values: The values, `[rows]`.
    """
    known = np.asarray(values, np.float64)

    def measure(counts: Counts) -> Floats:
        sums, sizes = counts @ known, counts.sum(1)
        means: Floats = np.divide(sums, sizes, out=np.full(len(counts), math.nan), where=sizes > 0)
        return means

    return measure


def drawn_metric(statistic: Statistic) -> RowMetric:
    """Return a metric that is computed anew for each draw, such as F1.

    Args:
        statistic: Computes the metric from indices of rows.
    """

    def measure(counts: Counts) -> Floats:
        rows: Rows = np.arange(counts.shape[1])
        drawn = (np.repeat(rows, times) for times in counts.astype(np.int64))
        return np.array([statistic(each) if len(each) else math.nan for each in drawn])

    return measure


def seed_difference(
    tasks: Mapping[str, Sequence[Setting]],
    priors: Mapping[str, SeedPrior] = MappingProxyType({}),
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SeedDifference:
    """Return the difference of two ways to train over their pairs of models.

    Args:
        tasks: The settings of each task, which share its rows; a pair or more in each.
        priors: What other comparisons show of the variance over seeds, by task.
        level: Level of the interval.
        resamples: Number of bootstrap samples of the rows.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no pairs.
    """
    random = np.random.default_rng(seed)
    found: list[_DrawnSetting] = []
    for task, settings in tasks.items():
        prior = priors.get(task, UNKNOWN)
        found += _drawn(settings, prior, len(tasks), resamples, random)
    if not found:
        raise ValueError("there are no pairs of models to compare")
    value = math.fsum(each.weight * each.by_seed.mean() for each in found)
    seeds = min(len(each.by_seed) for each in found)
    pairs = [setting for settings in tasks.values() for setting in settings]
    by_seed = _differences_by_seed(pairs, found)
    if min(each.units for each in found) < FEWEST:
        return SeedDifference(value, None, None, seeds, by_seed)
    variances = _variances(found, random) if seeds > 1 else np.array([_row_variance(found)])
    interval = _interval(value, variances, level)
    return SeedDifference(value, interval, _p_value(abs(value), variances), seeds, by_seed)


def seed_prior(differences: Sequence[ArrayLike]) -> SeedPrior | None:
    """Estimate the variance over seeds from comparisons, by empirical Bayes (Smyth, 2004).

    Args:
        differences: The difference of each seed, of each comparison; those of one seed, or without
            any variance, do not count.

    Returns:
        The prior; None below `FEWEST_VARIANCES` comparisons.
    """
    known = [np.asarray(each, np.float64) for each in differences]
    varied = [each for each in known if len(each) > 1 and np.ptp(each) > 0]
    if len(varied) < FEWEST_VARIANCES:
        return None
    halves = np.array([len(each) - 1 for each in varied]) / 2
    variances = np.array([each.var(ddof=1) for each in varied])
    logs = np.log(variances) - special.digamma(halves) + np.log(halves)
    spread = logs.var(ddof=1) - special.polygamma(1, halves).mean()
    half = halves.sum()
    if spread > special.polygamma(1, half):
        half = optimize.brentq(lambda h: special.polygamma(1, h) - spread, 1e-2, half)
    return SeedPrior(float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2 * half)


def wilcoxon(differences: ArrayLike) -> SeedTest:
    """Return Wilcoxon's signed-rank test of differences; refused below `FEWEST_SEEDS` of them.

    Args:
        differences: The difference of each seed.
    """
    known = np.asarray(differences, np.float64)
    n = len(known)
    if n < FEWEST_SEEDS:
        least = f"its smallest p-value is {2.0 ** (1 - n):.2g}" if n else "there are none"
        return SeedTest(n, reason=f"{n} seeds; {FEWEST_SEEDS} are needed, as {least}")
    unequal = known[known != 0]
    if len(unequal) == 0:
        return SeedTest(n, 1.0)
    return SeedTest(n, float(stats.wilcoxon(unequal, method="exact").pvalue))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, after Holm (1979), in the same order.

    Args:
        ps: The p-values of all comparisons.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class _DrawnSetting:
    """A setting: the difference of each seed, `[S]`, and that of each draw, `[draws, S]`."""

    prior: SeedPrior
    weight: float
    by_seed: Floats
    drawn: Floats
    units: int


def _drawn(
    settings: Sequence[Setting],
    prior: SeedPrior,
    tasks: int,
    resamples: int,
    random: np.random.Generator,
) -> list[_DrawnSetting]:
    """Return the settings of a task, whose rows are drawn at once for all of them."""
    pairs = [pair for setting in settings for pair in setting]
    places = {unit: at for at, unit in enumerate(dict.fromkeys(u for p in pairs for u in p.units))}
    size = len(places)
    drawn = random.multinomial(size, np.full(size, 1 / max(size, 1)), size=resamples)
    counts = np.vstack([np.ones(size), drawn])  # the rows as they are, then the draws
    found = []
    for setting in settings:
        values = np.stack([_differences(pair, places, counts) for pair in setting], 1)
        weight = 1 / (tasks * len(settings))
        found.append(_DrawnSetting(prior, weight, values[0], values[1:], size))
    return found


def _differences(pair: SeedPair, places: Mapping[Hashable, int], counts: Counts) -> Floats:
    columns = np.array([places[unit] for unit in pair.units])
    if not np.array_equal(columns, np.arange(counts.shape[1])):  # a copy, of many draws a large one
        counts = counts[:, columns]
    return pair.first(counts) - pair.second(counts)


def _differences_by_seed(
    settings: Sequence[Setting], found: Sequence[_DrawnSetting]
) -> dict[int, float]:
    """Return the difference of each seed that all settings have."""
    known = [
        dict(zip((pair.seed for pair in setting), each.by_seed.tolist(), strict=True))
        for setting, each in zip(settings, found, strict=True)
    ]
    common = set.intersection(*map(set, known))
    weights = [each.weight for each in found]
    return {
        seed: math.fsum(w * by_seed[seed] for w, by_seed in zip(weights, known, strict=True))
        for seed in sorted(common)
    }


def _row_variance(found: Sequence[_DrawnSetting]) -> float:
    """Return the variance of the whole difference under other rows."""
    total = sum(each.weight * each.drawn.mean(1) for each in found)
    return float(np.nanvar(total))


def _variances(found: Sequence[_DrawnSetting], random: np.random.Generator) -> Floats:
    """Return variances that the whole difference may have under other rows and seeds.

    That over seeds is known up to a chi-squared value, by which the sum of squares is divided. What
    other rows change differently for each seed is part of it, but also of the variance under other
    rows, and so must not count twice.
    """
    seeds = np.zeros(SCALES)
    for each in found:
        count, prior = len(each.by_seed), each.prior
        freedom = count - 1 + prior.freedom
        squares = (count - 1) * each.by_seed.var(ddof=1) + prior.freedom * prior.variance
        levels = (random.permutation(SCALES) + 0.5) / SCALES
        apart, together = np.nanvar(each.drawn, 0).mean(), np.nanvar(each.drawn.mean(1))
        twice = max(0.0, apart - together) / (count - 1)
        seeds += each.weight**2 * (squares / stats.chi2.ppf(levels, freedom) / count - twice)
    variances: Floats = _row_variance(found) + np.maximum(0.0, seeds)
    return variances


def _p_value(distance: float, variances: Floats) -> float:
    """Return the probability of a difference at least as large if there is none."""
    if distance == 0:
        return 1.0
    with np.errstate(divide="ignore"):
        return float((2 * stats.norm.sf(distance / np.sqrt(variances))).mean())


def _interval(value: float, variances: Floats, level: float) -> Interval:
    """Return the interval of the differences that a test at this level does not reject."""
    spread = np.sqrt(variances) * stats.norm.isf((1 - level) / 2)
    low, high = float(spread.min()), float(spread.max())
    half = high
    if high > low:
        half = optimize.brentq(lambda h: _p_value(h, variances) - (1 - level), low, high)
    return Interval(value - half, value + half, level)
