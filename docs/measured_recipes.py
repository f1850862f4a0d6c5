"""Keep what runs of recipes on the embedded task have measured, for the pages that show it.

    gkd run --recipe soft --output runs/soft
    python docs/measured_recipes.py runs/*

Reads finished runs, writes a line for each recipe to `explanation/recipes-measured.csv`, in place
of the line that it had, and then the pages that are generated from that file.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from finished_run import Measured

from gkd_core.atomic import write_file
from gkd_core.config.settings import read_file
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.plugins import registry
from gkd_core.training.stage_spec import BASELINE

TABLE = Path(__file__).parent / "explanation" / "recipes-measured.csv"


@dataclass(frozen=True)
class MeasuredRecipe:
    """What a run of a recipe has measured; numbers as they are shown.

    Attributes:
        recipe: Its name.
        metric: The metric.
        rows: Number of test rows.
        labels: Its value for the student that learns from labels alone.
        student: Its value for the student of the recipe.
        teacher: Its value for each teacher, the first one first.
        low: Lower end of the 95% interval of student minus labels; empty if there is none.
        high: Its upper end.
    """

    recipe: str
    metric: str
    rows: str
    labels: str
    student: str
    teacher: str
    low: str
    high: str


def main() -> None:
    """Read runs, and write the table and the pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="Directories; unfinished ones are left.")
    runs = [run for run in parser.parse_args().runs if (run / "results.json").exists()]
    known = {line.recipe: line for line in read_table()}
    known |= {line.recipe: line for line in map(measure, runs)}
    write_table([known[name] for name in sorted(known)])
    print(f"{len(known)} recipes in {TABLE}")
    subprocess.run([sys.executable, Path(__file__).with_name("generate.py")], check=True)


def read_table(path: Path = TABLE) -> list[MeasuredRecipe]:
    """Return the lines of the table; none if there is no table."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [MeasuredRecipe(**line) for line in csv.DictReader(file)]


def write_table(lines: list[MeasuredRecipe], path: Path = TABLE) -> None:
    """Write the table anew."""
    text = io.StringIO()
    names = [field.name for field in fields(MeasuredRecipe)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, lines))
    write_file(path, text.getvalue().encode())


def measure(run: Path) -> MeasuredRecipe:
    """Return what a finished run has measured."""
    measured = Measured.read(run)
    gain = measured.gain()
    sure = None if gain is None else gain.interval
    return MeasuredRecipe(
        recipe=recipe_of(run),
        metric=measured.metric,
        rows=str(measured.count),
        labels=_shown(measured, BASELINE),
        student=_shown(measured, STUDENT),
        teacher=", ".join(_shown(measured, file) for file in measured.teachers),
        low="" if sure is None else f"{sure.low:+.4f}",
        high="" if sure is None else f"{sure.high:+.4f}",
    )


def recipe_of(run: Path) -> str:
    """Return the name of the recipe that a run has carried out, which its title tells."""
    with (run / "config.toml").open("rb") as file:
        title = tomllib.load(file).get("title", "")
    for name, path in registry().recipes.items():
        if any(s.key == ("title",) and s.value == title for s in read_file(path)):
            return name
    raise SystemExit(f"{run} is no run of an installed recipe: its title is {title!r}")


def _shown(measured: Measured, file: str) -> str:
    return f"{measured.value(file):.4f}" if file in measured.rows else ""


if __name__ == "__main__":
    main()
