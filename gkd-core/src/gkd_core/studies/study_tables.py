"""Tables of a study: each axis, what is chosen, and every cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gkd_core.analysis.grid import Grid
from gkd_core.evaluation.statistics import LEVEL, Interval, p_text
from gkd_core.studies.cell import CellState
from gkd_core.studies.choice import Choice
from gkd_core.studies.comparisons import AxisTable, ComparedValue, SeedComparison, Spread
from gkd_core.studies.study_results import StudyResults
from gkd_core.studies.worst_case import WorstCase

NONE = "-"
FEW_TASKS = 3
"""Tasks that have columns in the table of an axis; more have a table of their own."""

PERCENT = f"{LEVEL:.0%}"

ABOUT_AXES = (
    "Mean and standard deviation over seeds, all else being equal. Difference: of students of the "
    f"same seed on the same rows; its {PERCENT} interval is about other rows and other seeds, "
    "whose variance is estimated from all comparisons of the study as far as they agree. p: "
    "adjusted for the number of comparisons in the table (Holm); better and worse: below "
    f"{1 - LEVEL:.2g}, otherwise tied, which means that they were not told apart, not that they "
    "are equal. lr: the factor of the learning rates that was tuned on validation rows, and the "
    "rates of the stages. McNemar: "
    "pairs of one seed that err on different rows more often than by chance "
    f"(p below {1 - LEVEL:.2g}, each by itself)."
)


def study_grids(
    results: StudyResults,
    tables: Sequence[AxisTable],
    worst: Mapping[str, Sequence[WorstCase]],
    choice: Choice,
) -> Iterator[Grid]:
    """Yield the tables of a study.

    Args:
        results: The results.
        tables: The comparisons by axis.
        worst: The worst case of each value, by axis.
        choice: What is chosen.
    """
    for table in tables:
        yield _axis_grid(table, results)
        if len(results.tasks) > FEW_TASKS:
            yield _task_grid(table, results)
        if cases := worst.get(table.axis):
            yield _worst_grid(table, cases)
    if choice.chosen:
        yield _chosen_grid(choice)
    if choice.duels:
        yield _duel_grid(choice)
    failed = _failed_grid(results)
    if failed.rows:
        yield failed
    yield _cell_grid(results)


def interval_text(interval: Interval | None) -> str:
    """Return an interval of a difference as text."""
    return NONE if interval is None else f"{interval:+.4f}"


def p_value_text(p: float | None) -> str:
    """Return the p-value of a comparison as text."""
    return NONE if p is None else p_text(p)


def verdict_text(comparison: SeedComparison) -> str:
    """Return the verdict of a comparison, with the number of seeds if it is one."""
    difference = comparison.difference
    one = difference is not None and difference.seeds == 1
    return f"{comparison.verdict} (one seed)" if one else str(comparison.verdict)


def _axis_grid(table: AxisTable, results: StudyResults) -> Grid:
    tasks = results.tasks
    several = len(tasks) > 1
    shown = tasks if len(tasks) <= FEW_TASKS else ()
    tuned = any([*level.rates] != [1] for level in table.levels)
    tested = any(
        level.comparison is not None and level.comparison.wilcoxon.p is not None
        for level in table.levels
    )
    columns = [
        table.axis,
        *(_heading(task, results) for task in shown),
        *["mean"] * several,
        "n",
        f"minus {table.baseline}",
        PERCENT,
        "p",
        "verdict",
        "McNemar",
        *["Wilcoxon"] * tested,
        *["lr"] * tuned,
        "ms",
        "weights",
    ]
    rows = []
    for level in table.levels:
        means = [_spread_text(level.spreads.get(task)) for task in shown]
        means += [NONE if level.mean is None else f"{level.mean:.4f}"] * several
        cells = [str(level.value), *means, _count(level), *_comparison_cells(level, tested)]
        rate = ", ".join(map(_rate_text, level.rates, level.rates.values()))
        rows.append([*cells, *[rate] * tuned, *_cost_cells(level)])
    return Grid(
        f"axis-{table.axis}", f"{table.axis}: each value against {table.baseline}", columns, rows
    )


def _rate_text(factor: float, rates: Sequence[float]) -> str:
    """Return a factor of learning rates, with the rates of the stages if they are known."""
    known = ", ".join(f"{rate:g}" for rate in rates)
    return f"x {factor:g} ({known})" if known else f"x {factor:g}"


def _task_grid(table: AxisTable, results: StudyResults) -> Grid:
    """Return the quality of each value on each task; rows are whichever are more."""
    tasks, levels = results.tasks, table.levels
    columns = ["task", *(str(level.value) for level in levels)]
    rows = [
        [_heading(task, results), *(_spread_text(level.spreads.get(task)) for level in levels)]
        for task in tasks
    ]
    if len(levels) > len(tasks):
        columns, *rows = map(list, zip(*([table.axis, *columns[1:]], *rows), strict=True))
    return Grid(f"tasks-{table.axis}", f"{table.axis}: each value on each task", columns, rows)


def _worst_grid(table: AxisTable, cases: Sequence[WorstCase]) -> Grid:
    columns = (table.axis, "tasks", "worst on", f"minus {table.baseline}", PERCENT)
    rows = [
        (
            str(case.value),
            str(case.tasks),
            case.task,
            f"{case.difference:+.4f}",
            interval_text(case.interval),
        )
        for case in cases
    ]
    title = f"{table.axis}: the task on which each value loses most to {table.baseline}"
    return Grid(f"worst-{table.axis}", title, columns, rows)


def _heading(task: str, results: StudyResults) -> str:
    found = (outcome.metric.name for each, outcome in results.judged() if each.cell.task == task)
    metric = next(found, "quality")
    return metric if len(results.tasks) == 1 else f"{task} ({metric})"


def _spread_text(spread: Spread | None) -> str:
    if spread is None or spread.mean is None:
        return NONE
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.4f}"
    return f"{spread.mean:.4f}{deviation}"


def _count(level: ComparedValue) -> str:
    """Return the number of students, and of those that failed."""
    failed = sum(spread.failed for spread in level.spreads.values())
    count = sum(spread.n for spread in level.spreads.values())
    return f"{count}, {failed} failed" if failed else str(count)


def _comparison_cells(level: ComparedValue, tested: bool) -> list[str]:
    comparison = level.comparison
    if comparison is None:
        return [NONE, NONE, NONE, "baseline", NONE, *[NONE] * tested]
    tests = comparison.mcnemar.values()
    significant = sum(test.p < 1 - LEVEL for test in tests)
    return [
        *_difference_cells(comparison),
        f"{significant} of {len(tests)}" if tests else NONE,
        *[p_value_text(comparison.wilcoxon.p)] * tested,
    ]


def _difference_cells(comparison: SeedComparison) -> list[str]:
    difference = comparison.difference
    if difference is None:
        return [NONE, NONE, NONE, str(comparison.verdict)]
    interval = interval_text(difference.interval)
    p, verdict = p_value_text(comparison.p), verdict_text(comparison)
    return [f"{difference.value:+.4f}", interval, p, verdict]


def _cost_cells(level: ComparedValue) -> list[str]:
    time, size = level.milliseconds, level.parameters
    return [
        NONE if time is None else f"{time:.2f}",
        NONE if size is None else f"{size / 1e6:.3g} M",
    ]


def _chosen_grid(choice: Choice) -> Grid:
    rows = [
        (each.among, each.label, f"{each.validation:.4f}", f"{each.test:.4f}", str(len(each.cells)))
        for each in choice.chosen
    ]
    columns = ("best of", "chosen on validation rows", "validation", "test", "n")
    return Grid("chosen", "What is chosen on validation rows", columns, rows)


def _duel_grid(choice: Choice) -> Grid:
    columns = ("chosen", "against", "difference", PERCENT, "p", "verdict")
    rows = [
        (duel.first.label, duel.second, *_difference_cells(duel.comparison))
        for duel in choice.duels
    ]
    return Grid("chosen-tested", "What is chosen, on the test rows", columns, rows)


def _failed_grid(results: StudyResults) -> Grid:
    rows = [
        (each.cell.label, str(each.state), each.cell.reason or each.failure.splitlines()[-1])
        for each in results.cells
        if each.failure or each.cell.reason
    ]
    return Grid("failed", "Failed and dropped cells", ("cell", "state", "reason"), rows)


def _cell_grid(results: StudyResults) -> Grid:
    axes = list(dict.fromkeys(axis for each in results.cells for axis in each.cell.axes))
    columns = (*axes, "task", "seed", "state", "metric", "test", "validation", "ms", "run")
    rows = []
    for each in results.cells:
        found = each.outcome
        cells = [str(each.cell.axes.get(axis, NONE)) for axis in axes]
        stale = f" (gkd {each.version})" if each.state is CellState.STALE else ""
        cells += [each.cell.task, str(each.cell.seed), f"{each.state}{stale}"]
        cells += (
            ["", NONE, NONE, NONE]
            if found is None
            else [
                found.metric.name,
                f"{found.quality:.4f}",
                NONE if found.validation is None else f"{found.validation:.4f}",
                NONE if found.milliseconds is None else f"{found.milliseconds:.2f}",
            ]
        )
        rows.append([*cells, each.cell.name])
    return Grid("cells", "Cells", columns, rows)
