"""The figure of `gkd plan`: the memory of each simulated step, by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

from matplotlib.axes import Axes

from gkd_core.analysis.figures import INK, STACK, axes_of, png

Bars = Mapping[str, Mapping[str, int]]
"""Bytes by kind, by the name of the bar."""


def memory_figure(bars: Bars, kinds: Sequence[str], limit: int | None = None) -> bytes:
    """Return a PNG of stacked bars: memory by kind, one bar per simulated step.

    Args:
        bars: Bytes by kind, by the name of the bar.
        kinds: All kinds, in stacking order; each has the same color in every figure.
        limit: Bytes of memory of a GPU, drawn as a line.
    """
    largest = max(sum(bar.values()) for bar in bars.values())
    unit, size = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    figure, axes = axes_of(f"{unit} per GPU", "")
    ends = _stack(axes, bars, kinds, size)
    _write_totals(axes, ends)
    axes.set_xlim(0, 1.12 * max([*ends, (limit or 0) / size]))
    if limit is not None:
        _mark(axes, limit / size, unit)
    _name_bars(axes, list(bars))
    figure.set_dpi(200)
    figure.set_size_inches(7.2, 1.6 + 0.45 * len(bars))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return png(figure)


def _stack(axes: Axes, bars: Bars, kinds: Sequence[str], size: int) -> list[float]:
    """Draw the bars, and return where each ends, in units of so many bytes."""
    ends = [0.0] * len(bars)
    for number, kind in enumerate(kinds):
        widths = [bar.get(kind, 0) / size for bar in bars.values()]
        if any(widths):
            axes.barh(
                range(len(bars)),
                widths,
                0.62,
                ends,
                label=kind,
                color=STACK[number % len(STACK)],
                edgecolor="white",
                linewidth=0.5,
            )
        ends = [start + width for start, width in zip(ends, widths, strict=True)]
    return ends


def _write_totals(axes: Axes, totals: Sequence[float]) -> None:
    for place, total in enumerate(totals):
        axes.annotate(
            f"{total:.1f}",
            (total, place),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
            fontsize=9,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _mark(axes: Axes, limit: float, unit: str) -> None:
    """Draw the memory that there is, as a line."""
    axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"{limit:.4g} {unit}",
        (limit, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(0, 4),
        ha="center",
        fontsize=9,
        color=INK,
    )


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    """Write the names beside the bars, from top to bottom."""
    axes.set_yticks(range(len(names)), ["\n".join(wrap(name, 30)) for name in names], fontsize=9)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
