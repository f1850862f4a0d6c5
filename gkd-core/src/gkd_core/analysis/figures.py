"""Figures of a run, drawn from its recorded metrics.

Those of the report are SVG whose ink is `currentColor`, so that they follow light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gkd_core.analysis.comparison import Comparison
from gkd_core.probes.probe_file import ProbedValue

Entries = Sequence[Mapping[str, Any]]
INK = "#1f2937"
STACK = (
    "#4477aa",
    "#66ccee",
    "#228833",
    "#ccbb44",
    "#ee6677",
    "#aa3377",
    "#ee9944",
    "#bbbbbb",
)
"""Colors distinct in print and for color-blind readers, after Paul Tol's bright scheme."""


HEAD = re.compile(r"^.*?(?=<svg)", re.S)
"""What stands before an SVG in a file of its own."""

LEGEND_LINE = 0.2
"""Height of an entry of a small legend, in inches."""

METADATA = re.compile(r"<metadata>.*?</metadata>", re.S)


def losses(entries: Entries) -> dict[str, str]:
    """Return an SVG with the curves of its loss terms for each stage that has taken steps."""
    figures = {}
    for stage in _stages(entries):
        mine = [e for e in entries if e["stage"] == stage]
        names = sorted({key for e in mine for key in e if key.startswith("loss/")})
        if not names:
            continue
        names = names if len(names) > 2 else ["loss/total"]  # one term of weight 1 is the total
        figure, axes = axes_of("step", "loss")
        for name in names:
            points = [(e["step"], e[name]) for e in mine if e.get(name) is not None]
            width = 2.2 if name == "loss/total" else 1.2
            axes.plot(*zip(*points, strict=True), label=name.removeprefix("loss/"), linewidth=width)
        if all(e[name] > 0 for e in mine for name in names if e.get(name) is not None):
            axes.set_yscale("log")
        axes.legend(frameon=False)
        figures[stage] = svg(figure)
    return figures


def validation(entries: Entries, metric: str) -> str | None:
    """Return an SVG of the validation metric over the progress of stages; None if none has any."""
    figure, axes = axes_of("share of the stage", metric)
    for stage in _stages(entries):
        key = f"validation/{metric}"
        mine = [e for e in entries if e["stage"] == stage and e.get(key) is not None]
        points = [(e["step"], e[key]) for e in mine]
        if points:
            last = max(step for step, _ in points)
            axes.plot([s / last for s, _ in points], [v for _, v in points], "o-", label=stage)
    if not axes.lines:
        plt.close(figure)
        return None
    axes.legend(frameon=False)
    return svg(figure)


def probed(values: Sequence[ProbedValue]) -> dict[str, str]:
    """Return an SVG per distance with its curves: one of each feature over the steps.

    Args:
        values: What the probes of a stage have measured.
    """
    drawn = {}
    for distance in dict.fromkeys(value.distance for value in values):
        figure, axes = axes_of("step", distance)
        mine = [value for value in values if value.distance == distance]
        features = dict.fromkeys(value.feature for value in mine)
        figure.set_figheight(max(figure.get_figheight(), LEGEND_LINE * len(features)))
        for feature in features:
            points = [(v.step, v.value) for v in mine if v.feature == feature]
            axes.plot(*zip(*points, strict=True), "o-", label=feature, linewidth=1.2, markersize=3)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        drawn[distance] = svg(figure)
    return drawn


def curves(x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Return a line plot in the style of the report, as the bytes of a PNG file.

    Args:
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        series: The (x, y) points of each line, by its name in the legend; at least one point each.
    """
    figure, axes = axes_of(x, y)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.legend(frameon=False)
    return png(figure)


def quality_over_size(comparison: Comparison) -> str:
    """Return an SVG of the models' quality over their number of parameters; area is latency."""
    figure, axes = axes_of("parameters", comparison.metric)
    slowest = max(row.milliseconds or 1.0 for row in comparison.rows)
    for row in comparison.rows:
        place = (row.parameters, row.metrics[comparison.metric])
        time = row.milliseconds
        axes.scatter(*place, s=60 + 400 * (time or 0.0) / slowest, alpha=0.6)
        axes.annotate(
            row.name if time is None else f"{row.name}\n{time:.1f} ms",
            place,
            textcoords="offset points",
            xytext=(12, -4),
            fontsize=9,
            color=INK,
        )
    axes.margins(x=0.35, y=0.25)
    return svg(figure)


def _stages(entries: Entries) -> list[str]:
    return list(dict.fromkeys(entry["stage"] for entry in entries))


def axes_of(x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes in the style of the report.

    Args:
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=130, layout="constrained")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    axes.grid(color=INK, alpha=0.15)
    axes.set_prop_cycle(color=STACK)
    return figure, axes


def svg(figure: Figure) -> str:
    """Return a figure as an SVG for a page: its ink is the color of the text there.

    Args:
        figure: The figure, which is closed.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "text.color": INK, "svg.hashsalt": "gkd"}):
        for legend in (each.get_legend() for each in figure.axes):
            for text in () if legend is None else legend.get_texts():
                text.set_color(INK)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    found = METADATA.sub("", HEAD.sub("", buffer.getvalue(), count=1))
    return found.replace(INK, "currentColor")


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Args:
        figure: The figure, which is closed.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
