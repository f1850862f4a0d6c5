"""Figures of a study: bars with intervals, heat maps, depth at equal size, quality and latency."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gkd_core.analysis.figures import INK, STACK, axes_of
from gkd_core.analysis.probe_figures import add_scale, write_value
from gkd_core.config.expression import parse_expression
from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.studies.comparisons import AxisTable, ComparedValue, Verdict, rises
from gkd_core.studies.declared import Declared, declared
from gkd_core.studies.study_config import METHOD
from gkd_core.studies.study_results import CellResult, StudyResults

EQUAL = 1.2
"""Students whose numbers of weights differ by a smaller factor are of equal size."""

COLORS = {Verdict.BETTER: STACK[2], Verdict.WORSE: STACK[4]}
"""Colors of bars by verdict; others are gray, the baseline is blue."""

Cells = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class StudyFigure:
    """A figure of a study.

    Attributes:
        name: Name of its file.
        caption: What it shows.
        figure: The figure.
    """

    name: str
    caption: str
    figure: Figure


def study_figures(
    results: StudyResults, tables: Sequence[AxisTable], registry: Registry
) -> Iterator[StudyFigure]:
    """Yield the figures that the cells of a study suffice for.

    Args:
        results: The results of a study.
        tables: The comparisons by axis.
        registry: The plugins, which say what methods declare.
    """
    judged = [each for each, _ in results.judged()]
    for table in tables:
        if any(level.mean is not None for level in table.levels):
            caption = (
                f"{table.axis}: mean over tasks and seeds; whiskers: 95 % interval of the "
                f"difference to {table.baseline}"
            )
            yield StudyFigure(f"bars-{table.axis}", caption, _bars(table))
    yield from _heat_maps(results, judged, registry)
    sizes = _by_size(judged)
    if sizes:
        caption = "Quality over depth; students on one line have about as many weights"
        yield StudyFigure("depth", caption, _depth(sizes))
    points = _latencies(results)
    if len(points) > 1:
        caption = "Quality over the time for one sample; the line joins those that no other beats"
        yield StudyFigure("pareto", caption, pareto(points, rises(results), teacher_of(results)))


def pareto(
    points: Mapping[str, tuple[float, float]],
    rising: bool,
    teacher: tuple[float, float] | None = None,
) -> Figure:
    """Draw students by their latency and quality, and which of them no other beats in both.

    Args:
        points: Milliseconds and metric of each, by name.
        rising: Whether larger values of the metric are better.
        teacher: Those of the teacher, if they are known.
    """
    figure, axes = axes_of("milliseconds for one sample", "quality")
    front = pareto_front(points, rising)
    axes.plot(
        *zip(*(points[name] for name in front), strict=True), color=INK, linewidth=1, zorder=1
    )
    for name, place in points.items():
        on_front = name in front
        axes.scatter(*place, s=36 if on_front else 18, color=STACK[0 if on_front else 7], zorder=2)
        if on_front:
            _name(axes, name, place)
    if teacher is not None:
        axes.scatter(*teacher, marker="*", s=90, color=STACK[4], zorder=2)
        _name(axes, "teacher", teacher)
    axes.margins(x=0.2, y=0.15)
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]], rising: bool) -> list[str]:
    """Return the names of the points that no other is at least as fast and as good as.

    Args:
        points: Milliseconds and metric of each, by name.
        rising: Whether larger values of the metric are better.
    """
    sign = 1 if rising else -1
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -sign * points[name][1])):
        if not front or sign * points[name][1] > sign * points[front[-1]][1]:
            front.append(name)
    return front


def teacher_of(results: StudyResults) -> tuple[float, float] | None:
    """Return the mean latency and quality of the teacher; None if they are not known."""
    found = [
        (outcome.teacher_milliseconds, outcome.teacher)
        for _, outcome in results.judged()
        if outcome.teacher_milliseconds is not None and outcome.teacher is not None
    ]
    times, qualities = zip(*found, strict=True) if found else ((), ())
    return (fmean(times), fmean(qualities)) if found else None


def _name(axes: Axes, name: str, place: tuple[float, float]) -> None:
    axes.annotate(name, place, textcoords="offset points", xytext=(6, 4), fontsize=8, color=INK)


def _bars(table: AxisTable) -> Figure:
    levels = [level for level in reversed(table.levels) if level.mean is not None]
    figure, axes = axes_of("quality", "")
    figure.set_size_inches(6.4, 1.2 + 0.3 * len(levels))
    means = [level.mean or 0.0 for level in levels]
    lowest = min(means)
    for place, (level, mean) in enumerate(zip(levels, means, strict=True)):
        axes.barh(place, mean, 0.66, color=_color(level))
        interval = _interval(level, mean)
        if interval is not None:
            axes.plot(interval, [place, place], color=INK, linewidth=1.2)
            lowest = min(lowest, interval[0])
    axes.set_yticks(range(len(levels)), [str(level.value) for level in levels], fontsize=8)
    span = max(means) - lowest
    axes.set_xlim(left=max(0.0, lowest - 0.15 * span) if span and lowest > 0 else None)
    axes.grid(visible=False, axis="y")
    return figure


def _color(level: ComparedValue) -> str:
    comparison = level.comparison
    return STACK[0] if comparison is None else COLORS.get(comparison.verdict, STACK[7])


def _interval(level: ComparedValue, mean: float) -> tuple[float, float] | None:
    """Return the interval of a difference where the mean of the baseline is its zero."""
    difference = None if level.comparison is None else level.comparison.difference
    if difference is None or difference.interval is None:
        return None
    zero = mean - difference.value
    return zero + difference.interval.low, zero + difference.interval.high


def _heat_maps(
    results: StudyResults, judged: Sequence[CellResult], registry: Registry
) -> Iterator[StudyFigure]:
    """Yield a heat map of each pair of crossed axes, and of what methods declare."""
    for one, other in combinations(results.axes, 2):
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for each in judged:
            axes = each.cell.axes
            if each.outcome is not None and one in axes and other in axes:
                values[str(axes[one]), str(axes[other])].append(each.outcome.quality)
        if len(values) > len({a for a, _ in values}) + len({b for _, b in values}) - 1:
            cells = {place: fmean(found) for place, found in values.items()}
            caption = f"Mean quality by {one} and {other}"
            yield StudyFigure(f"heat-{one}-{other}", caption, _heat_map(cells, one, other))
    by_knowledge = _by_knowledge(judged, registry)
    if len(by_knowledge) > 2:
        caption = "Mean quality of single methods by what they declare: knowledge, and layers read"
        figure = _heat_map(by_knowledge, "knowledge", "layers of the teacher")
        yield StudyFigure("heat-knowledge-matching", caption, figure)


def _by_knowledge(judged: Sequence[CellResult], registry: Registry) -> Cells:
    """Return the mean quality of single methods by the knowledge and the layers that they match."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    known: dict[str, Declared | None] = {}
    for each in judged:
        name = str(each.cell.axes.get(METHOD, ""))
        if name not in known:
            known[name] = _declared(name, registry)
        found = known[name]
        if found is not None and each.outcome is not None:
            values[found.knowledge, found.matching].append(each.outcome.quality)
    return {place: fmean(found) for place, found in values.items()}


def _declared(expression: str, registry: Registry) -> Declared | None:
    try:
        names = parse_expression(expression).names if expression else ()
    except ConfigError:
        return None
    method = registry.methods.get(names[0]) if len(names) == 1 else None
    return None if method is None else declared(method)


def _heat_map(cells: Cells, row: str, column: str) -> Figure:
    rows = list(dict.fromkeys(place[0] for place in cells))
    columns = list(dict.fromkeys(place[1] for place in cells))
    figure, axes = axes_of(column, row)
    figure.set_size_inches(3.2 + 0.6 * len(columns), 1.6 + 0.35 * len(rows))
    table = [[cells.get((r, c), math.nan) for c in columns] for r in rows]
    low, high = min(cells.values()), max(cells.values())
    mesh = axes.pcolormesh(table, cmap="Blues", vmin=low, vmax=high)
    for (r, c), value in cells.items():
        write_value(axes, mesh, (rows.index(r), columns.index(c)), value, places=3)
    axes.set_xticks(
        [n + 0.5 for n in range(len(columns))], columns, rotation=40, ha="right", fontsize=8
    )
    axes.set_yticks([n + 0.5 for n in range(len(rows))], rows, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False)
    add_scale(figure, mesh, "quality")
    return figure


def _by_size(judged: Sequence[CellResult]) -> Mapping[int, Sequence[tuple[int, float]]]:
    """Return depth and mean quality of students of equal size, by their number of weights."""
    known: dict[tuple[int, int], list[float]] = defaultdict(list)
    for each in judged:
        outcome = each.outcome
        if outcome is not None and outcome.layers and outcome.parameters:
            known[outcome.parameters, outcome.layers].append(outcome.quality)
    groups: dict[int, dict[int, list[float]]] = {}
    for (size, layers), values in sorted(known.items()):
        start = next((s for s in groups if size < EQUAL * s), size)
        groups.setdefault(start, {}).setdefault(layers, []).extend(values)
    return {
        size: [(depth, fmean(values)) for depth, values in sorted(depths.items())]
        for size, depths in groups.items()
        if len(depths) > 1
    }


def _depth(sizes: Mapping[int, Sequence[tuple[int, float]]]) -> Figure:
    figure, axes = axes_of("blocks", "quality")
    for size, points in sizes.items():
        axes.plot(*zip(*points, strict=True), "o-", label=f"{size / 1e6:.3g} M weights")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _latencies(results: StudyResults) -> Mapping[str, tuple[float, float]]:
    """Return the mean latency and quality of each variant, by name."""
    found = {}
    for axes, cells in results.variants().items():
        known = [
            (each.outcome.milliseconds, each.outcome.quality)
            for each in cells
            if each.outcome is not None and each.outcome.milliseconds is not None
        ]
        if known:
            times, qualities = zip(*known, strict=True)
            varied = [str(value) for axis, value in axes if axis in results.axes]
            found[", ".join(varied) or "student"] = (fmean(times), fmean(qualities))
    return found
