"""The figure of the first page: the models of a run side by side, as the run has measured them.

It is drawn from what a run of classification leaves in its directory, such as the demo:

    gkd run --output runs/demo
    python docs/demo_figure.py runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finished_run import Measured
from matplotlib.axes import Axes

from gkd_core.analysis.figures import INK, STACK, axes_of, svg
from gkd_core.atomic import write_file
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.training.stage_spec import BASELINE

OUTPUT = Path(__file__).parent / "images" / "demo.svg"
COLORS = {STUDENT: STACK[0], BASELINE: STACK[6]}
OTHER = "#888888"
STYLE = """<style>
svg { color: #1f2937; background: #ffffff; font-family: system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { color: #e5e7eb; background: #131416 } }
</style>
"""
"""An image has no page around it to take colors from, so it brings both sets of them."""


def main() -> None:
    """Draw the figure of a run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="Directory of a finished run.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="An SVG file.")
    options = parser.parse_args()
    write_file(options.output, draw(options.run).encode())


def draw(run: Path) -> str:
    """Return the figure as the text of an SVG file."""
    measured = Measured.read(run)
    figure, axes = axes_of("accuracy on the test rows, with 95% interval", "")
    for place, file in enumerate(measured.rows):
        _draw_model(axes, place, file, measured)
    names = [row["name"] for row in measured.rows.values()]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_title(headline(measured), color=INK, fontsize=10, loc="left")
    figure.set_size_inches(7.6, 2.6)
    return svg(figure).replace("<defs>", f"{STYLE}<defs>", 1)


def headline(measured: Measured) -> str:
    """Say what the teacher has added, and how sure that is."""
    gain = measured.gain()
    if gain is None:
        raise SystemExit("the run has no baseline: start it with --baseline")
    sure = gain.interval
    interval = f" (95% interval {sure.low:+.4f} to {sure.high:+.4f})" if sure else ""
    return f"The teacher adds {gain.value:+.4f} to labels alone{interval}"


def _draw_model(axes: Axes, place: int, file: str, measured: Measured) -> None:
    color = COLORS.get(file, OTHER)
    found, row = measured.estimate(file), measured.rows[file]
    if found.interval is not None:
        ends = [found.interval.low, found.interval.high]
        axes.plot(ends, [place, place], color=color, linewidth=3)
    axes.plot([found.value], [place], "o", color=color, markersize=9)
    axes.annotate(
        f"{found.value:.4f} ({row['parameters'] / 1e6:.2f} M weights)",
        (found.value, place),
        textcoords="offset points",
        xytext=(0, 9),
        ha="center",
        fontsize=9,
        color=INK,
    )


if __name__ == "__main__":
    main()
