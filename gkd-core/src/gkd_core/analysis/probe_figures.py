"""Figures of what `gkd analyze` finds: heat maps of distances, correlations and layers; losses."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from gkd_core.analysis.correlations import ProbeCorrelation, final_distances
from gkd_core.analysis.figures import INK, axes_of
from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.layer_similarity import LayerSimilarity

Cells = Sequence[Sequence[float]]

CELL = "cell"
"""Beginning of the ids of the values in a heat map, which are not in the ink of the page."""

EVEN_LUMINANCE = 0.179
"""The relative luminance from which black and white are equally easy to tell (WCAG 2)."""


def distances_by_method(runs: Sequence[FinishedRun]) -> Figure:
    """Draw the final distances of each method, from the best method to the worst.

    A column is a method, a cell the mean over its runs and over the layers of a site, in standard
    deviations from the mean of the methods.
    """
    methods: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        methods[run.method].append(run)
    quality = {method: fmean(run.quality for run in own) for method, own in methods.items()}
    ranked = sorted(methods, key=lambda method: -quality[method])
    means = {method: _mean_by_site(methods[method]) for method in ranked}
    rows = list(dict.fromkeys(name for found in means.values() for name in found))
    cells = [_standardized([means[m].get(name, math.nan) for m in ranked]) for name in rows]
    columns = [f"{method}  {quality[method]:.3f}" for method in ranked]
    return _heat_map(cells, rows, columns, "standardized distance", limit=2.5)


def correlations_by_feature(found: Sequence[ProbeCorrelation]) -> Figure:
    """Draw Spearman's correlation of each feature and distance with quality."""
    features = sorted({each.probe.feature for each in found}, key=_natural)
    distances = sorted({each.probe.distance for each in found}, key=_natural)
    values = {
        (each.probe.feature, each.probe.distance): each.spearman.value
        for each in found
        if each.spearman.value is not None
    }
    cells = [[values.get((f, d), math.nan) for d in distances] for f in features]
    return _heat_map(cells, features, distances, "Spearman's correlation with quality", limit=1)


def layers(similarity: LayerSimilarity) -> Figure:
    """Draw the similarity of each layer of the student to each of the teacher."""
    rows = [f"student {layer}" for layer in range(len(similarity.values))]
    columns = [f"{layer}" for layer in range(len(similarity.values[0]))]
    figure = _heat_map(similarity.values, rows, columns, "unbiased CKA of hidden states", limit=1)
    figure.axes[0].set_xlabel(f"layer of {similarity.teacher} (0: embedding)", color=INK)
    return figure


def loss_curves(runs: Sequence[FinishedRun]) -> Figure:
    """Draw the loss of the last stage of each run; runs of a method share a color."""
    figure, axes = axes_of("step", "loss")
    colors: dict[str, str] = {}
    for run in runs:
        points = [(e["step"], e["loss/total"]) for e in run.entries if e.get("loss/total")]
        if points:
            known = run.method in colors
            color = colors.setdefault(run.method, f"C{len(colors) % 10}")
            label = None if known else run.method
            axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _mean_by_site(runs: Iterable[FinishedRun]) -> Mapping[str, float]:
    """Return the mean distance over runs and over the layers of a site."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for probe, value in final_distances(run).items():
            site = re.sub(r"\[.*?\]", "", probe.feature)
            found[f"{site} {probe.distance}"].append(value)
    return {name: fmean(values) for name, values in found.items()}


def _standardized(values: Sequence[float]) -> list[float]:
    known = [value for value in values if math.isfinite(value)]
    spread = pstdev(known) if known else 0.0
    return [(value - fmean(known)) / spread if spread else math.nan for value in values]


def _natural(name: str) -> list[tuple[bool, str | int]]:
    """Return a key that sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts]


def _heat_map(
    cells: Cells, rows: Sequence[str], columns: Sequence[str], label: str, limit: float
) -> Figure:
    """Draw cells with their values; one that is NaN is empty."""
    size = 2.6 + 0.52 * len(columns), max(3.2, 1.4 + 0.34 * len(rows))  # the scale has a label
    figure, axes = plt.subplots(figsize=size, dpi=130, layout="constrained")
    lowest = -limit if any(value < 0 for row in cells for value in row) else 0.0
    # A mesh and not an image, which the policy of a page forbids.
    mesh = axes.pcolormesh(cells, cmap="RdBu_r" if lowest else "Blues", vmin=lowest, vmax=limit)
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(len(rows))], rows, fontsize=8)
    places = [column + 0.5 for column in range(len(columns))]
    turn, side = (60, "right") if max(map(len, columns)) > 3 else (0, "center")
    axes.set_xticks(places, columns, fontsize=8, rotation=turn, ha=side)
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            if math.isfinite(value):
                write_value(axes, mesh, (row, column), value, places=2 if limit == 1 else 1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    add_scale(figure, mesh, label)
    return figure


def write_value(
    axes: Axes, mesh: QuadMesh, cell: tuple[int, int], value: float, places: int
) -> None:
    """Write a value into a cell of a heat map, in the ink that is easier to read on its color.

    Args:
        axes: The heat map.
        mesh: Its cells.
        cell: Row and column.
        value: The value.
        places: Decimal places that are shown.
    """
    row, column = cell
    red, green, blue, _ = to_rgba_array(mesh.to_rgba(np.array([value])))[0]
    luminance = 0.2126 * _linear(red) + 0.7152 * _linear(green) + 0.0722 * _linear(blue)
    axes.text(
        column + 0.5,
        row + 0.5,
        f"{value:.{places}f}",
        ha="center",
        va="center",
        fontsize=7,
        color="white" if luminance < EVEN_LUMINANCE else "black",
        gid=f"{CELL}-{row}-{column}",
    )


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def add_scale(figure: Figure, mesh: QuadMesh, label: str) -> None:
    """Add the scale of the colors to a heat map, as lines and not as an image.

    Args:
        figure: The heat map.
        mesh: Its cells.
        label: What the colors mean.
    """
    scale = figure.colorbar(mesh, shrink=0.9)
    scale.set_label(label, color=INK, fontsize=8)
    scale.ax.tick_params(color=INK, labelcolor=INK, labelsize=8)
    scale.outline.set_edgecolor(INK)
    if scale.solids is not None:
        scale.solids.set_rasterized(False)
