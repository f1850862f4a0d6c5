"""`gkd analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gkd_core.cli.json_output import json_option


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write analysis.html, figures (PNG), tables (CSV) and analysis.json to a directory.",
)
@json_option()
def analyze(runs: tuple[Path, ...], output: Path | None, as_json: bool) -> dict[str, Any] | None:
    """Show which distances correlate with the quality of students.

    Given several runs, it correlates the distances that their probes measured last (gkd run --probe
    all) with the quality of their students. Each run is one point; with fewer than 8 points,
    nothing is shown. Given one run, it shows correlations of the changes between its evaluations,
    the similarity of the layers of student and teacher, and the rows on which they disagree most.
    """
    from rich.console import Console

    from gkd_core.analysis.analysis import analyze as analyzed
    from gkd_core.analysis.analysis import write_analysis
    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.plugins import registry

    found = analyzed([FinishedRun.read(run, registry()) for run in runs], registry())
    page = None if output is None else write_analysis(found, output)
    if as_json:
        return found.to_json()
    console = Console(highlight=False)
    for grid in found.grids():
        console.print(grid.shown())
        console.print()
    for note in found.notes:
        console.print(note, markup=False)
    if page is not None:
        console.print(f"written to {page}", markup=False, soft_wrap=True)
    return None
