"""`gkd study`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.errors import RESUMABLE
from gkd_core.cli.launching import launch_options, make_launcher, share_of, stoppable
from gkd_core.cli.numeric import WholeRange
from gkd_core.cli.options import RunOptions, assignment, study_options
from gkd_core.cli.study_report import report

if TYPE_CHECKING:
    from gkd_core.studies.study import Study
    from gkd_core.studies.study_config import StudyConfig

FOLDER = Path("studies")


@click.group()
def study() -> None:
    """Compare methods, recipes or settings over seeds and tasks.

    A study is a file of axes (toml, yaml, json). Each of its cells is a separate run; a finished
    cell never runs again.
    """


study.add_command(report)


def _study_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names a study, and what its cells share, to a command."""
    for decorate in reversed(
        (
            click.argument("name", metavar="STUDY"),
            click.option(
                "--output",
                type=click.Path(path_type=Path),
                help="Folder of the study. [studies/NAME]",
            ),
            click.option(
                "--axis",
                "axes",
                multiple=True,
                metavar="NAME=[VALUE, ...]",
                help="Replace the values of an axis: seed=[1,2]; repeatable.",
            ),
            study_options,
        )
    ):
        command = decorate(command)
    return command


@study.command()
@_study_command
@launch_options("local")
@click.option("--rerun-stale", is_flag=True, help="Run cells again that were run with older code.")
def run(
    name: str,
    output: Path | None,
    axes: tuple[str, ...],
    settings: tuple[str, ...],
    launcher: str,
    options: tuple[str, ...],
    jobs: int | None,
    threads: int | None,
    shard: str | None,
    shards: int | None,
    rerun_stale: bool,
    **flags: Any,
) -> None:
    """Run the cells of a study that are not finished.

    STUDY is a file, the folder of a study, or a study that comes with gkd. If the command is
    interrupted for any reason, repeat it to continue.
    """
    from gkd_core.cli.study_progress import StudyProgress
    from gkd_core.studies.execution import Execution, Room

    found = _find(name, output, axes, settings, flags)
    starter, share = make_launcher(launcher, options), share_of(shard, shards)
    progress = StudyProgress()
    execution = Execution(found, starter, share, Room(jobs, threads), rerun_stale, progress)
    with stoppable():
        folder = execution.run()
    progress.finish(folder, execution.left(folder))


@study.command()
@_study_command
@click.option("--jobs", type=WholeRange(1), help="Cells at a time. [as many as fit]")
@click.option("--threads", type=WholeRange(1), help="Threads of a cell. [cores / jobs]")
def plan(
    name: str,
    output: Path | None,
    axes: tuple[str, ...],
    settings: tuple[str, ...],
    jobs: int | None,
    threads: int | None,
    **flags: Any,
) -> None:
    """Show the cells of a study and their predicted cost on this machine.

    For each method and shape, a few steps are run and timed; the results are stored with the study.
    """
    from rich.console import Console

    from gkd_core.cli.study_progress import StudyProgress, forecast_table
    from gkd_core.plugins import registry
    from gkd_core.studies.execution import Room
    from gkd_core.studies.forecast import forecast, time_cells

    found = _find(name, output, axes, settings, flags)
    progress, room = StudyProgress(), Room(jobs, threads)
    folder = found.open()
    progress.start(folder, found.unknown(folder))
    with stoppable():
        time_cells(found, registry().make_launcher("local", {}), room, progress)
    Console(highlight=False).print(forecast_table(forecast(found, folder), folder.config.keep))


@study.command(hidden=True)
@click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("name")
def cell(path: Path, name: str) -> None:
    """Run one cell in this process; this is what launchers start."""
    from gkd_core.errors import ConfigError
    from gkd_core.lease import HeldElsewhere
    from gkd_core.plugins import registry
    from gkd_core.studies.run_cell import run_cell
    from gkd_core.studies.study_folder import StudyFolder
    from gkd_core.training.participants import installed_code

    folder = StudyFolder.read(path, installed_code(registry()))
    # A command with other axes may have listed its own cells since this one was started.
    named = [each for each in (*folder.cells, *folder.former) if each.name == name]
    if not named:
        raise ConfigError(f"{path} has no cell {name!r}")
    try:
        sys.exit(run_cell(folder, named[0], _status_of))
    except HeldElsewhere:
        sys.exit(RESUMABLE)


def _status_of(arguments: Sequence[str]) -> int:
    """Run `gkd` with arguments in this process, and return its exit status."""
    from gkd_core.cli import main

    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


@study.command()
@click.argument("name", metavar="STUDY")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the study. [studies/NAME]"
)
def status(name: str, output: Path | None) -> None:
    """Show the state of each cell of a study."""
    from rich.console import Console

    from gkd_core.cli.study_progress import status_notes, status_table
    from gkd_core.plugins import registry
    from gkd_core.studies.study_folder import StudyFolder
    from gkd_core.training.participants import installed_code

    folder = StudyFolder.read(output or folder_of(name), installed_code(registry()))
    console = Console(highlight=False)
    console.print(status_table(folder))
    for note in status_notes(folder):
        console.print(note, markup=False, soft_wrap=True)


def folder_of(name: str) -> Path:
    """Return the folder of a study that is named, or that a file has."""
    return Path(name) if _is_folder(name) else FOLDER / Path(name).stem


def _is_folder(name: str) -> bool:
    from gkd_core.studies.study_folder import CELLS

    return (Path(name) / CELLS).exists()


def _find(
    name: str,
    output: Path | None,
    axes: tuple[str, ...],
    settings: tuple[str, ...],
    flags: Mapping[str, Any],
) -> Study:
    from gkd_core.plugins import registry
    from gkd_core.studies.study import Study
    from gkd_core.studies.study_config import flat

    config = _with_axes(_read(name), axes)
    given = dict(assignment(text, "--set") for text in settings)
    shared = {key: value for key, (value, _) in RunOptions((), None, (), flags).flagged.items()}
    settings_of_all = {**config.settings, **flat({**shared, **given})}
    config = config.model_copy(update={"settings": settings_of_all})
    return Study(output or folder_of(name), config, registry())


def _read(name: str) -> StudyConfig:
    from gkd_core.config.formats import READERS
    from gkd_core.studies.shipped import shipped_study
    from gkd_core.studies.study_config import read_study
    from gkd_core.studies.study_folder import STUDY

    if _is_folder(name):
        return read_study(Path(name) / STUDY)
    if Path(name).suffix in READERS:
        return read_study(Path(name))
    return read_study(shipped_study(name))


def _with_axes(config: StudyConfig, axes: tuple[str, ...]) -> StudyConfig:
    from gkd_core.studies.study_config import parse_study

    if not axes:
        return config
    tree = config.model_dump(exclude_unset=True)
    for axis, value in (assignment(text, "--axis") for text in axes):
        tree.setdefault("axes", {})[axis] = value if isinstance(value, list) else [value]
    return parse_study(tree, "--axis")
