"""The losses of a run as CSV files, and a command that shows them."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from gkd_core.api import RunInfo, StageInfo, Step, hookimpl, is_first

GKD_API_VERSION = 2


@hookimpl
def gkd_step_end(run: RunInfo, stage: StageInfo, step: Step, losses: Mapping[str, float]) -> None:
    """Add a line to the file of the stage."""
    if not is_first():
        return
    path = run.directory / f"losses-{stage.name}.csv"
    row = {"step": step.index + 1, **losses}
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


@click.command("losses")
@click.argument("run", type=click.Path(path_type=Path))
def show_losses(run: Path) -> None:
    """Show the first and the last losses of each stage of a RUN."""
    paths = sorted(run.glob("losses-*.csv"))
    if not paths:
        raise click.ClickException(
            f"{run} has no losses-STAGE.csv: name a run made with this plugin"
        )
    for path in paths:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in (rows[0], rows[-1]):
            told = "  ".join(f"{name} {float(value):.4g}" for name, value in row.items())
            click.echo(f"{path.stem.removeprefix('losses-')}  {told}")


@hookimpl
def gkd_register_commands() -> Iterable[click.Command]:
    """Return the command `gkd losses`."""
    return [show_losses]
