"""`gkd study report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gkd_core.cli.json_output import json_option


@click.command()
@click.argument("name", metavar="STUDY")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the report. [report/ in the folder of the study]",
)
@json_option()
def report(name: str, output: Path | None, as_json: bool) -> dict[str, Any] | None:
    """Show which cells of a study are better, worse or tied, and how certain that is.

    Students are compared with those of the baseline that have the same seed, on the same test rows.
    The best ones are chosen on validation rows. Writes study.html, report.md, report.json, tables
    (CSV) and figures (PNG); cells that are not finished are left out and named.
    """
    from rich.console import Console

    from gkd_core.cli.study import folder_of
    from gkd_core.plugins import registry
    from gkd_core.studies.study_folder import StudyFolder
    from gkd_core.studies.study_report import REPORT, StudyReport
    from gkd_core.studies.study_results import StudyResults
    from gkd_core.training.participants import installed_code

    folder = StudyFolder.read(folder_of(name), installed_code(registry()))
    found = StudyReport.of(StudyResults.read(folder, registry()))
    page = found.write(output or folder.path / REPORT, registry())
    if as_json:
        return found.to_json()
    console = Console(highlight=False)
    for grid in found.grids():
        console.print(grid.shown())
        console.print()
    for line in (*found.sentences(), *found.notes()):
        console.print(line, markup=False)
    console.print(f"written to {page}", markup=False, soft_wrap=True)
    return None
