"""One figure with the loss of every recipe, stage by stage, on the embedded task.

Every installed recipe is run for a few steps a stage, whichever package ships it, and one figure is
drawn of what the runs recorded. A run that is there already is not repeated. What follows `--` goes
to every `gkd run`:

    python docs/loss_curves.py                       # all recipes
    python docs/loss_curves.py pkd sid --steps 20 -- --teacher DIR --data train.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]
"""Steps and losses of a stage."""

COLUMNS = 5
SMOOTHED = 5
"""Steps in a running mean."""

NAMED = 4
"""Stages that are named; more of them are numbered."""

COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626")
GREY = "#6b7280"
SVG = {"svg.fonttype": "none", "svg.hashsalt": "gkd"}
"""Text stays text, and equal figures are equal files."""

ADDED = ("teacher", "baseline")
"""Stages of a run that are not the recipe's."""


def main() -> None:
    """Run the recipes and draw the figure."""
    options = _options()
    curves = {}
    for recipe in options.recipes or _recipes():
        run = options.runs / f"{recipe}-{options.steps}"
        if (run / "student").exists() or _train(recipe, run, options.steps, options.given):
            curves[recipe] = read_curves(run)
    draw(curves, options.output)
    print(f"{len(curves)} recipes in {options.output}")


def read_curves(run: Path) -> dict[str, Curve]:
    """Return the total loss of each stage of the recipe, in order."""
    stages: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss/total" in entry and not entry["stage"].startswith(ADDED):
            stages.setdefault(entry["stage"], []).append((entry["step"], entry["loss/total"]))
    return stages


def normalized(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return progress from 0 to 1, the loss and its running mean, over the largest mean."""
    steps, losses = np.array(curve, float).T
    means = [losses[max(0, end - SMOOTHED) : end].mean() for end in range(1, len(losses) + 1)]
    largest = max(np.abs(means).max(), 1e-12)
    return steps / steps[-1], losses / largest, np.array(means) / largest


def draw(recipes: Mapping[str, Mapping[str, Curve]], output: Path) -> None:
    """Draw a panel per recipe; its stages follow each other from left to right."""
    columns = min(COLUMNS, len(recipes))
    rows = math.ceil(len(recipes) / columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.5 * columns, 1.7 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(recipes) :]:
        axes.set_axis_off()
    for axes, (recipe, stages) in zip(panels.flat, recipes.items(), strict=False):
        _panel(axes, recipe, stages)
    figure.supylabel("loss, over the largest of its stage", fontsize=8, color=GREY)
    figure.supxlabel("the steps of each stage, one stage after the other", fontsize=8, color=GREY)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f"{output.stem}.tmp{output.suffix}")
    dated = {"Date": None} if output.suffix == ".svg" else {}
    with matplotlib.rc_context(SVG):
        figure.savefig(draft, metadata=dated)
    os.replace(draft, output)
    plt.close(figure)


def _panel(axes: Axes, recipe: str, stages: Mapping[str, Curve]) -> None:
    for number, curve in enumerate(stages.values()):
        progress, loss, mean = normalized(curve)
        color = COLORS[number % len(COLORS)]
        axes.plot(number + progress, loss, linewidth=0.6, color=color, alpha=0.3)
        axes.plot(number + progress, mean, linewidth=1.5, color=color)
    for border in range(1, len(stages)):
        axes.axvline(border, color="#d1d5db", linewidth=0.6)
    few = len(stages) <= NAMED
    names = [name.replace("-", "-\n") if few else str(n) for n, name in enumerate(stages, start=1)]
    axes.set_xticks([number + 0.5 for number in range(len(stages))], names, color=GREY, fontsize=6)
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", length=2, labelsize=7, labelcolor=GREY)
    axes.set_title(recipe, fontsize=9)
    axes.set_ylim(0, 1.15)
    axes.set_xlim(0, len(stages))
    axes.grid(axis="y", alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _train(recipe: str, run: Path, steps: int, more: Sequence[str]) -> bool:
    """Run a recipe, or go on with it; say so if it does not work."""
    print(f"running {recipe}", flush=True)
    settings = {
        "training.steps": steps,
        "training.evaluate_every": steps,
        "training.log_every": 1,
        "output.tensorboard": "false",
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = (
        ["--resume"] if run.exists() else ["--recipe", recipe, "--no-baseline", *given, *more]
    )
    command = [sys.executable, "-m", "gkd_core.cli", "run", *arguments, "--output", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{recipe} is left out: {done.stderr.strip()}", file=sys.stderr)
    return done.returncode == 0


def _recipes() -> Sequence[str]:
    from gkd_core.plugins import registry

    return list(registry().recipes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", help="Recipes to run; all if none is named.")
    parser.add_argument("--steps", type=int, default=60, help="Steps of every stage.")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/loss-curves"), help="Where the runs are kept."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/images/loss-curves.svg"), help="SVG or PNG."
    )
    own, more = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, more = own[:cut], own[cut + 1 :]
    options = parser.parse_args(own)
    options.given = more
    return options


if __name__ == "__main__":
    main()
