"""Correlations of probes with quality: over runs, and within a run over its evaluations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.errors import DataError
from gkd_core.evaluation.statistics import Correlation, pearson, spearman
from gkd_core.probes.probe_file import TRAINING, VALIDATION, ProbedValue


class ProbeKey(NamedTuple):
    """A probe: a distance of a feature to that of a teacher.

    Attributes:
        teacher: Name of the teacher.
        feature: The student's feature.
        distance: Name of the distance.
    """

    teacher: str
    feature: str
    distance: str

    @classmethod
    def of(cls, value: ProbedValue) -> ProbeKey:
        """Return the probe that a value is of."""
        return cls(value.teacher, value.feature, value.distance)


@dataclass(frozen=True)
class ProbeCorrelation:
    """The correlation of a probe with quality.

    Attributes:
        probe: The probe.
        spearman: Of the ranks.
        pearson: Of the values.
    """

    probe: ProbeKey
    spearman: Correlation
    pearson: Correlation


def final_distances(run: FinishedRun) -> Mapping[ProbeKey, float]:
    """Return the distances of the student that a run ends with, on its validation rows."""
    return {ProbeKey.of(value): value.value for value in run.probes if value.rows == VALIDATION}


def correlations_over_runs(runs: Sequence[FinishedRun]) -> list[ProbeCorrelation]:
    """Return the correlation of each probe's final distance with the quality of the student.

    A run is one point. Probes with the strongest correlation come first.

    Raises:
        DataError: The runs are judged by different metrics or rows.
    """
    _check_comparable(runs)
    points: dict[ProbeKey, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        for probe, value in final_distances(run).items():
            points[probe].append((value, run.quality))
    return _correlated(points)


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Reject runs whose qualities cannot be compared, and a run that would count twice."""
    places = [run.directory.resolve() for run in runs]
    twice = [run for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise DataError(f"{twice[0].directory} is named more than once; a run is one point")
    judged = {run.judged_by: run for run in runs}
    if len(judged) > 1:
        (one, first), (other, second), *_ = judged.items()
        raise DataError(
            f"{first.directory} is judged by {one}, but {second.directory} by {other}: their "
            "qualities cannot be compared. Analyze runs on the same test rows together"
        )
    read = {run.rows_digest: run for run in runs if run.rows_digest is not None}
    if len(read) > 1:
        first, second, *_ = read.values()
        raise DataError(
            f"{first.directory} and {second.directory} are judged on different rows: their "
            "qualities cannot be compared. Analyze runs on the same test rows together"
        )


def correlations_within(run: FinishedRun) -> list[ProbeCorrelation]:
    """Return the correlation of changes of each distance with those of quality within a run.

    Over a run everything falls or rises together, so that the values themselves would correlate
    whatever they are. A point is what changed from one evaluation on the validation rows to the
    next: of the metric, and of the mean distance in the steps before the evaluation.
    """
    evaluations = run.evaluations
    series: dict[ProbeKey, list[ProbedValue]] = defaultdict(list)
    for value in run.probes:
        if value.rows == TRAINING:
            series[ProbeKey.of(value)].append(value)
    qualities = _changes([quality for _, quality in evaluations])
    points = {}
    for probe, values in series.items():
        distances = _changes(_means_before([step for step, _ in evaluations], values))
        points[probe] = list(zip(distances, qualities, strict=True))
    return _correlated(points)


def _means_before(steps: Sequence[int], values: Iterable[ProbedValue]) -> list[float]:
    """Return the mean of the values since the evaluation before each; NaN if there is none."""
    found = []
    for before, step in pairwise([0, *steps]):
        inside = [value.value for value in values if before < value.step <= step]
        found.append(fmean(inside) if inside else math.nan)
    return found


def _changes(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def _correlated(
    points: Mapping[ProbeKey, Sequence[tuple[float, float]]],
) -> list[ProbeCorrelation]:
    found = []
    for probe, pairs in points.items():
        distances, qualities = zip(*pairs, strict=True) if pairs else ((), ())
        correlated = spearman(distances, qualities), pearson(distances, qualities)
        found.append(ProbeCorrelation(probe, *correlated))
    return sorted(found, key=lambda each: -abs(each.spearman.value or 0.0))
