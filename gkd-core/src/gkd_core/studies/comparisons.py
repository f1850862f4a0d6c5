"""Comparisons of the values of an axis: each against that of the baseline, all else being equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, stdev
from typing import TypeAlias

from gkd_core.evaluation.predictions import pair_rows
from gkd_core.evaluation.seed_statistics import (
    SeedDifference,
    SeedPair,
    SeedPrior,
    SeedTest,
    holm,
    seed_difference,
    seed_prior,
    wilcoxon,
)
from gkd_core.evaluation.statistics import LEVEL, McNemar, mcnemar
from gkd_core.studies.cell import Cell
from gkd_core.studies.outcome import Outcome
from gkd_core.studies.study_config import AxisValue
from gkd_core.studies.study_results import Axes, CellResult, StudyResults, axes_of

DRAWS = 1000
"""Bootstrap samples of the rows for each comparison."""

PairKey: TypeAlias = tuple[str, int, Axes]
"""The task and the seed of two students, and the values on other axes that both have."""


class Verdict(StrEnum):
    """The result of a comparison, at the level of 5 % over all comparisons of an axis."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"
    UNKNOWN = "not compared"


@dataclass(frozen=True)
class Spread:
    """The metric of students over seeds.

    Attributes:
        n: Number of students.
        mean: Their mean; None without students.
        deviation: The standard deviation over seeds, all else being equal; None with one seed.
        failed: Number of students that could not be trained.
    """

    n: int
    mean: float | None
    deviation: float | None
    failed: int = 0


@dataclass(frozen=True)
class SeedComparison:
    """The students of one value against those of another, all else being equal.

    Attributes:
        difference: The mean difference of the metric; None without pairs of students.
        p: Its p-value, adjusted for the number of comparisons; None if there is none.
        verdict: What it says.
        mcnemar: McNemar's test of each pair of students, by task, seed and the values that both
            have on other axes; empty where answers are not simply right or wrong.
        wilcoxon: Wilcoxon's test over seeds.
        left_out: What could not be compared, with its name.
    """

    difference: SeedDifference | None
    p: float | None
    verdict: Verdict
    mcnemar: Mapping[PairKey, McNemar]
    wilcoxon: SeedTest
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class ComparedValue:
    """A value of an axis.

    Attributes:
        value: The value.
        spreads: The metric of its students by task.
        comparison: Against the value of the baseline; None for that itself.
        milliseconds: Median time of its students for one sample, the mean; None if not measured.
        parameters: Weights of its students, the mean; None if there are none.
        rates: The learning rates of the stages of its students, by the factor that they were tuned
            to; 1 untuned.
    """

    value: AxisValue
    spreads: Mapping[str, Spread]
    comparison: SeedComparison | None
    milliseconds: float | None
    parameters: float | None
    rates: Mapping[float, Sequence[float]]

    @property
    def mean(self) -> float | None:
        """The mean over tasks; None if one has no students."""
        means = [spread.mean for spread in self.spreads.values() if spread.mean is not None]
        return fmean(means) if len(means) == len(self.spreads) else None


@dataclass(frozen=True)
class AxisTable:
    """The values of an axis, the best first.

    Attributes:
        axis: The axis.
        baseline: The value that the others are compared with.
        levels: The values.
    """

    axis: str
    baseline: AxisValue
    levels: Sequence[ComparedValue]


def axis_table(results: StudyResults, axis: str) -> AxisTable:
    """Compare the values of an axis.

    Only cells count to which there is another that differs on this axis alone.

    Args:
        results: The results of a study.
        axis: The axis.
    """
    center = results.config.center.get(axis, results.values(axis)[0])
    cells = varied(results.without_dropped(), axis)
    by_value = {v: [c for c in cells if c.cell.axes.get(axis) == v] for v in results.values(axis)}
    against, priors = by_value.get(center, []), seed_priors(results)
    levels = [
        _level(axis, value, own, None if value == center else compare(own, against, priors, axis))
        for value, own in by_value.items()
        if own
    ]
    rising = rises(results)
    sign = -1 if rising else 1
    ranked = sorted(
        _adjusted(levels, rising), key=lambda each: (each.mean is None, sign * (each.mean or 0))
    )
    return AxisTable(axis, center, ranked)


def seed_priors(results: StudyResults) -> Mapping[str, SeedPrior]:
    """Estimate the variance over seeds from a study, by task.

    It is that of the difference between a variant and the baseline.

    Args:
        results: The results of the study.
    """
    variants = results.variants()
    center = variants.get(axes_of(results.config.center), ())
    known = {_key(each): each.outcome.quality for each in center if each.outcome is not None}
    found: dict[str, list[list[float]]] = defaultdict(list)
    for cells in variants.values():
        if cells is center:
            continue
        by_task: dict[str, list[float]] = defaultdict(list)
        for each in cells:
            if each.outcome is not None and _key(each) in known:
                by_task[each.cell.task].append(each.outcome.quality - known[_key(each)])
        for task, differences in by_task.items():
            found[task].append(differences)
    priors = {task: seed_prior(differences) for task, differences in found.items()}
    return {task: prior for task, prior in priors.items() if prior is not None}


def rises(results: StudyResults) -> bool:
    """Return whether larger values of the metric are better."""
    return all(outcome.metric.higher_is_better for _, outcome in results.judged())


def compare(
    cells: Iterable[CellResult],
    against: Iterable[CellResult],
    priors: Mapping[str, SeedPrior],
    axis: str | None = None,
) -> SeedComparison:
    """Compare cells with others that have the same task and seed; the p-value is not adjusted.

    Args:
        cells: The cells.
        against: The others.
        priors: What the study shows of the variance over seeds, by task.
        axis: The only axis on which a cell may differ from its counterpart; None if it may differ
            on all of them.
    """
    paired = _Paired()
    others = {_key(each, axis): each for each in against}
    for own in cells:
        paired.add(own, others.pop(_key(own, axis), None), axis)
    for other in others.values():
        paired.left_out.append(f"{other.cell.label} has no counterpart")
    settings = {task: list(own.values()) for task, own in paired.settings.items()}
    if not settings:
        nothing = SeedTest(0, reason="there are no pairs")
        return SeedComparison(None, None, Verdict.UNKNOWN, {}, nothing, paired.left_out)
    difference = seed_difference(settings, priors, resamples=DRAWS)
    return SeedComparison(
        difference,
        difference.p,
        judge(difference, difference.p, paired.rising),
        paired.mcnemar,
        wilcoxon(list(difference.by_seed.values())),
        paired.left_out,
    )


def adjust(comparisons: Sequence[SeedComparison], rising: bool) -> list[SeedComparison]:
    """Return comparisons with p-values and verdicts that take their number into account.

    Args:
        comparisons: The comparisons, with p-values of their own.
        rising: Whether larger values of the metric are better.
    """
    adjusted = iter(holm([each.p for each in comparisons if each.p is not None]))
    found = []
    for each in comparisons:
        p = None if each.p is None else next(adjusted)
        found.append(replace(each, p=p, verdict=judge(each.difference, p, rising)))
    return found


def judge(difference: SeedDifference | None, p: float | None, rising: bool) -> Verdict:
    """Return the verdict on a difference.

    Args:
        difference: The difference.
        p: Its p-value, adjusted for the number of comparisons.
        rising: Whether larger values of the metric are better.
    """
    if difference is None or p is None:
        return Verdict.UNKNOWN
    if p > 1 - LEVEL:
        return Verdict.TIED
    return Verdict.BETTER if (difference.value > 0) == rising else Verdict.WORSE


def spread(cells: Iterable[CellResult], axis: str | None = None) -> Spread:
    """Return the spread of the metric of cells of one task.

    Args:
        cells: The cells.
        axis: The axis that they share a value on, if they may differ on others.
    """
    known: dict[object, list[float]] = defaultdict(list)
    failed = 0
    for each in cells:
        failed += each.failure != ""
        if each.outcome is not None:
            known[None if axis is None else each.elsewhere(axis)].append(each.outcome.quality)
    values = [value for own in known.values() for value in own]
    variances = [stdev(own) ** 2 for own in known.values() if len(own) > 1]
    deviation = fmean(variances) ** 0.5 if variances else None
    return Spread(len(values), fmean(values) if values else None, deviation, failed)


def varied(cells: Iterable[CellResult], axis: str) -> list[CellResult]:
    """Return the cells to which there is another that differs on an axis alone.

    Args:
        cells: The cells.
        axis: The axis.
    """
    found = [each for each in cells if axis in each.cell.axes]
    values = defaultdict(set)
    for each in found:
        values[each.elsewhere(axis)].add(each.cell.axes[axis])
    return [each for each in found if len(values[each.elsewhere(axis)]) > 1]


def _level(
    axis: str,
    value: AxisValue,
    cells: Sequence[CellResult],
    comparison: SeedComparison | None,
) -> ComparedValue:
    by_task: dict[str, list[CellResult]] = defaultdict(list)
    for each in cells:
        by_task[each.cell.task].append(each)
    outcomes = [each.outcome for each in cells if each.outcome is not None]
    times = [each.milliseconds for each in outcomes if each.milliseconds is not None]
    sizes = [each.parameters for each in outcomes if each.parameters is not None]
    return ComparedValue(
        value,
        {task: spread(own, axis) for task, own in by_task.items()},
        comparison,
        fmean(times) if times else None,
        fmean(sizes) if sizes else None,
        _rates(cells),
    )


def _rates(cells: Sequence[CellResult]) -> Mapping[float, Sequence[float]]:
    """Return the learning rates of stages, by factor; none of cells without an outcome."""
    found: dict[float, dict[float, None]] = defaultdict(dict)
    for each in cells:
        known = () if each.outcome is None else each.outcome.rates
        found[each.cell.lr_factor] |= dict.fromkeys(known)
    return {factor: list(found[factor]) for factor in sorted(found)}


def _adjusted(levels: Sequence[ComparedValue], rising: bool) -> list[ComparedValue]:
    """Return levels with p-values that take their number into account."""
    compared = [each.comparison for each in levels if each.comparison is not None]
    adjusted = iter(adjust(compared, rising))
    return [
        each if each.comparison is None else replace(each, comparison=next(adjusted))
        for each in levels
    ]


def _key(result: CellResult, axis: str | None = None) -> PairKey:
    shared = () if axis is None else result.elsewhere(axis)
    return result.cell.task, result.cell.seed, shared


class _Paired:
    """Pairs of students, and what could not be paired.

    Attributes:
        settings: The pairs by task and by what else they share.
        mcnemar: McNemar's test of each pair, by task, seed and what else they share.
        left_out: What could not be compared, with its name.
        rising: Whether larger values of the metric are better.
    """

    def __init__(self) -> None:
        self.settings: dict[str, dict[Axes, list[SeedPair]]] = {}
        self.mcnemar: dict[PairKey, McNemar] = {}
        self.left_out: list[str] = []
        self.rising = True

    def add(self, own: CellResult, other: CellResult | None, axis: str | None) -> None:
        """Add a student and its counterpart."""
        if other is None:
            self.left_out.append(f"{own.cell.label} has no counterpart")
            return
        for each in (own, other):
            if each.outcome is None:
                self.left_out.append(f"{each.cell.label}: {each.why_missing}")
                return
        assert own.outcome is not None
        assert other.outcome is not None
        key = _key(own, axis)
        pair = self._paired(own.cell, own.outcome, other.outcome, key)
        if pair is not None:
            self.rising = own.outcome.metric.higher_is_better
            task, _, shared = key
            self.settings.setdefault(task, {}).setdefault(shared, []).append(pair)

    def _paired(self, cell: Cell, own: Outcome, other: Outcome, key: PairKey) -> SeedPair | None:
        """Return the pair on the rows that both predicted."""
        if own.metric != other.metric:
            names = f"{own.metric.name} cannot be compared with {other.metric.name}"
            self.left_out.append(f"{cell.label}: {names}")
            return None
        mine, theirs = own.rows, other.rows
        if mine is None or theirs is None:
            self.left_out.append(
                f"{cell.label}: {own.metric.name} cannot be computed for a part of the rows"
            )
            return None
        pairing = pair_rows(mine.ids, theirs.ids)
        if pairing.only_ours or pairing.only_theirs:
            self.left_out.append(f"{cell.label}: {pairing}")
        if not len(pairing):
            return None
        if mine.right is not None and theirs.right is not None:
            right = mine.right[pairing.ours], theirs.right[pairing.theirs]
            self.mcnemar[key] = mcnemar(*right)
        units = [mine.units[row] for row in pairing.ours]
        return SeedPair(cell.seed, units, mine.metric(pairing.ours), theirs.metric(pairing.theirs))
