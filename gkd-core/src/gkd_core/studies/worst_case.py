"""`WorstCase`: the task on which a value of an axis loses most to the baseline.

The mean over tasks says which value is best where all tasks count the same. A default has to do no
harm on any: it is the value whose worst task is the least bad, as far as can be told.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from gkd_core.evaluation.statistics import Interval
from gkd_core.studies.comparisons import AxisTable, compare, rises, seed_priors, varied
from gkd_core.studies.study_config import AxisValue
from gkd_core.studies.study_results import CellResult, StudyResults


@dataclass(frozen=True)
class WorstCase:
    """The task on which a value of an axis loses most to the baseline.

    Attributes:
        value: The value.
        task: The task.
        difference: Its difference to the baseline there.
        interval: The confidence interval of that.
        tasks: Number of tasks on which the two were compared.
    """

    value: AxisValue
    task: str
    difference: float
    interval: Interval
    tasks: int


def worst_cases(results: StudyResults, table: AxisTable) -> list[WorstCase]:
    """Return the worst task of each value of an axis; the value that loses least comes first.

    Values that were compared on fewer tasks than others come last.

    Args:
        results: The results of a study.
        table: The comparisons of the axis.
    """
    sign = 1 if rises(results) else -1
    found = []
    for value, by_task in _differences(results, table).items():
        task, (difference, interval) = min(by_task.items(), key=lambda each: sign * each[1][0])
        found.append(WorstCase(value, task, difference, interval, len(by_task)))
    return sorted(found, key=lambda each: (-each.tasks, -_least(each.interval, sign)))


def _least(interval: Interval, sign: int) -> float:
    """Return the worse end of an interval, times the sign by which larger values are better."""
    return min(sign * interval.low, sign * interval.high)


def _differences(
    results: StudyResults, table: AxisTable
) -> dict[AxisValue, dict[str, tuple[float, Interval]]]:
    """Return the difference of each value to the baseline on each task, with its interval."""
    priors, cells = seed_priors(results), defaultdict[tuple[AxisValue, str], list[CellResult]](list)
    for each in varied(results.without_dropped(), table.axis):
        cells[each.cell.axes[table.axis], each.cell.task].append(each)
    found: dict[AxisValue, dict[str, tuple[float, Interval]]] = {}
    for value, task in cells:
        if value != table.baseline:
            own, against = cells[value, task], cells.get((table.baseline, task), ())
            difference = compare(own, against, priors, table.axis).difference
            if difference is not None and difference.interval is not None:
                found.setdefault(value, {})[task] = difference.value, difference.interval
    return found
