"""A small student taught directly, by the assistant of `autodisc`, or by the best of all of them.

For each seed three ways lead to a slice of the teacher that keeps a tenth of its heads and neurons:

- direct: it learns from the teacher itself;
- autodisc: all candidates are trained at once, one student learns from the chosen one;
- maxi: a student learns from each candidate, trained alone; the best on validation rows counts.

All have the loss, the epochs and the learning rate of the recipe `autodisc`, unless given. Printed
are the metric on the test rows (the validation rows if there are none), mean and standard
deviation over the seeds, the number of students distilled, and the time their stages took:

    python tests/benchmarks/assistant_search.py TEACHER train.jsonl --folder runs/search \\
        --set task.validation=validation.jsonl --set training.epochs=10
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TARGET = 0.1


@dataclass(frozen=True)
class Outcome:
    """A finished run: the student's metric on test rows and on validation rows, and seconds."""

    test: float
    validation: float
    seconds: float


def main() -> None:
    """Run all, or what is not there yet, and print the table."""
    given = arguments()
    found: dict[str, list[Outcome]] = {"direct": [], "autodisc": [], "maxi": []}
    for seed in given.seeds:
        folder = given.folder / f"seed-{seed}"
        common = ["--teacher", given.teacher, "--data", given.data, "--seed", str(seed)]
        common += ["--no-baseline", *(t for s in given.set for t in ("--set", s))]
        scales = ",".join(f"{scale:g}" for scale in [*given.scales, TARGET])
        found["direct"].append(run(folder / "direct", [str(direct(folder)), *common]))
        recipe = ["--recipe", "autodisc", *common]
        found["autodisc"].append(run(folder / "autodisc", [*recipe, *searched(scales)]))
        every = [
            run(folder / f"maxi-{scale:g}", [*recipe, *searched(f"{scale:g}")])
            for scale in given.scales
        ]
        best = max(every, key=lambda outcome: outcome.validation)
        found["maxi"].append(Outcome(best.test, best.validation, sum(o.seconds for o in every)))
    print_table(found, {"direct": 1, "autodisc": 1, "maxi": len(given.scales)})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("teacher", help="directory of a trained classifier")
    parser.add_argument("data", help="training file")
    parser.add_argument("--folder", type=Path, default=Path("runs/assistant-search"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 0.4, 0.3, 0.2])
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs")
    return parser.parse_args()


def searched(scales: str) -> list[str]:
    """Return the setting of the candidates; the student's stage must not search as well."""
    return ["--set", f"stages.assistants.autodisc.scales=[{scales}]"]


def direct(folder: Path) -> Path:
    """Write the run file of a student without assistant: the second stage of the recipe alone."""
    from gkd_core.config.settings import read_file
    from gkd_core.plugins import registry

    recipe = {setting.key: setting.value for setting in read_file(registry().recipes["autodisc"])}
    training = {key[-1]: value for key, value in recipe.items() if key[0] == "training"}
    lines = ["method = 'autodisc'", "autodisc.scales = [1.0]", "student.layers = 'all'"]
    lines += [f"student.scale = {TARGET}", *(f"training.{k} = {v}" for k, v in training.items())]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "direct.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(folder: Path, command: Sequence[str]) -> Outcome:
    """Run gkd, unless that run is there already, and read what came out."""
    if not (folder / "results.json").exists():
        resume = ["--resume"] if (folder / "config.toml").exists() else []
        gkd = [sys.executable, "-m", "gkd_core.cli", "run", *command, "--output", str(folder)]
        subprocess.run([*gkd, *resume], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((folder / "results.json").read_text())
    stages = [json.loads(path.read_text()) for path in folder.glob("stages/*/done.json")]
    last = next(s for s in stages if Path(s["student"]).resolve() == (folder / "student").resolve())
    # Nothing was left to do where the assistant is as small as the student.
    best = math.nan if last["best"] is None else last["best"]
    metric = results["rows"][-1]["metrics"][results["metric"]]
    return Outcome(metric, best, sum(stage["seconds"] for stage in stages))


def print_table(found: dict[str, list[Outcome]], students: dict[str, int]) -> None:
    """Print a line for each way."""
    print(f"{'':<10}{'metric':>10}{'sd':>8}{'seconds':>10}{'students':>10}   each seed")
    for way, outcomes in found.items():
        values = [outcome.test for outcome in outcomes]
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        seconds = statistics.mean(outcome.seconds for outcome in outcomes)
        each = " ".join(f"{value:.4f}" for value in values)
        print(
            f"{way:<10}{statistics.mean(values):>10.4f}{sd:>8.4f}{seconds:>10.0f}"
            f"{students[way]:>10}   {each}"
        )


if __name__ == "__main__":
    main()
