"""`gkd run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.errors import resumable
from gkd_core.cli.options import RunOptions, run_options, show_warnings

if TYPE_CHECKING:
    from rich.console import Console

    from gkd_core.analysis.recorder import Recorder
    from gkd_core.config.resolve import Resolved
    from gkd_core.training.run_directory import Mode


@click.command()
@run_options
@click.option("--overwrite", is_flag=True, help="Replace the run in the run directory.")
@click.option("--resume", is_flag=True, help="Go on with the run in the run directory.")
def run(
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    **flags: Any,
) -> None:
    """Distil a student.

    Without arguments a student is distilled with pkd+soft on text that every Python brings along.
    A FILE (toml, yaml, json) holds settings; flags and --set stand above it.
    """
    from rich.console import Console

    if overwrite and resume:
        raise click.UsageError("--overwrite and --resume exclude each other")
    options = RunOptions(files, recipe, settings, flags)
    mode: Mode = "resume" if resume else "overwrite" if overwrite else "new"
    _run(_resume(options) if resume else options.resolve(), mode, Console())


def _run(resolved: Resolved, mode: Mode, console: Console) -> None:
    from gkd_core.analysis.conclusion import conclude
    from gkd_core.config.render import to_toml
    from gkd_core.plugins import registry
    from gkd_core.training.run import Run, draw_run
    from gkd_core.training.run_directory import free_directory, open_directory

    show_warnings(resolved)
    blueprints = draw_run(resolved, registry())
    chosen = resolved.config.output.dir
    directory = Path(chosen) if chosen else free_directory(resolved.stages[-1].config.method)
    with open_directory(directory, mode, to_toml(resolved)), resumable(directory):
        recorder = _recorder(resolved, directory, console)
        run = Run(resolved, registry(), blueprints, directory, recorder)
        run.execute()
        conclusion = conclude(run)
    console.print(conclusion.comparison.table())
    for name, path in (
        ("student", run.student),
        ("report", conclusion.report),
        ("log", directory / "log.txt"),
    ):
        console.print(f"{name:<8} {path}", highlight=False, markup=False, soft_wrap=True)


def _resume(options: RunOptions) -> Resolved:
    """Return the configuration of the run that goes on; what is given again must be the same."""
    from gkd_core.config.resolve import resolve
    from gkd_core.errors import ConfigError
    from gkd_core.plugins import registry
    from gkd_core.training.run_directory import CONFIG

    chosen = options.flags.get("output")
    if chosen is None:
        raise ConfigError("--resume needs the directory of the run: add --output DIR")
    stored = Path(chosen) / CONFIG
    if not stored.exists():
        raise ConfigError(f"{chosen} holds no run to resume. Leave out --resume to start one")
    before = resolve(registry(), files=[stored])  # complete: no default of a task is missing
    now = options.resolve(base=[stored])
    changed = before.differences(now, ignore=("output.dir",))
    if changed:
        raise ConfigError(
            f"--resume goes on with the run as it was configured in {stored}, but these settings "
            f"differ: {', '.join(changed)}. Leave them out, or start a new run"
        )
    return now


def _recorder(resolved: Resolved, directory: Path, console: Console) -> Recorder:
    from gkd_core.analysis.display import display
    from gkd_core.analysis.recorder import JsonLines, Recorder, Sink, TensorBoard, TextLog

    sinks: list[Sink] = [
        display(console),
        TextLog(directory / "log.txt"),
        JsonLines(directory / "metrics.jsonl"),
    ]
    if resolved.config.output.tensorboard:
        sinks.append(TensorBoard(directory / "tensorboard"))
    return Recorder(sinks)
