"""`gkd run`."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.duration import Duration
from gkd_core.cli.errors import resumable
from gkd_core.cli.numeric import WholeRange
from gkd_core.cli.options import RunOptions, run_options, show_warnings
from gkd_core.cli.ranks import among_ranks, ranks_to_start, start_ranks
from gkd_core.cli.seeds import run_seeds
from gkd_core.named_path import named_path
from gkd_core.runs.run_files import CONFIG, LOG
from gkd_core.stop_signals import time_limit

if TYPE_CHECKING:
    from gkd_core.analysis.run_summary import RunSummary
    from gkd_core.config.resolve import Resolved
    from gkd_core.runs.directory import Mode
    from gkd_core.runs.resumption import Resumption
    from gkd_core.runs.run import Run
    from gkd_core.training.manifest import Difference
    from gkd_core.training.stage_spec import StageSpec


@click.command()
@run_options
@click.option(
    "--seeds",
    type=WholeRange(min=2),
    help="Run with this many seeds, starting at --seed, each in its own directory.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in the run directory.")
@click.option("--resume", is_flag=True, help="Continue the run in the run directory.")
@click.option(
    "--accept-changes",
    is_flag=True,
    help="With --resume: continue although rows, models, settings or plugins have changed.",
)
@click.option(
    "--max-time",
    type=Duration(),
    help="Stop after this time, such as 3h30m, with a checkpoint and exit status 75.",
)
def run(
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    seeds: int | None,
    overwrite: bool,
    resume: bool,
    accept_changes: bool,
    max_time: float | None,
    **flags: Any,
) -> None:
    """Distill a student.

    Without arguments, a student is distilled with soft+hard on text that comes with Python.
    FILE (toml, yaml, json) contains settings; flags and --set override it.
    """
    if overwrite and resume:
        raise click.UsageError("--overwrite and --resume are mutually exclusive")
    if accept_changes and not resume:
        raise click.UsageError("--accept-changes belongs to --resume")
    options = RunOptions(files, recipe, settings, flags)

    def run_once(options: RunOptions) -> None:
        if resume and not (seeds and _is_new(options)):
            _run("resume", *_resume(options, accept_changes))
        else:
            _run("overwrite" if overwrite else "new", options.resolve())

    with among_ranks(), time_limit(max_time):
        if seeds is None:
            run_once(options)
        else:
            run_seeds(options, seeds, run_once)


def _is_new(options: RunOptions) -> bool:
    """Return whether a run has not been begun: of several seeds, the first may be finished."""
    return not (named_path(options.flags["output"]) / CONFIG).exists()


def _run(mode: Mode, resolved: Resolved, resumption: Resumption | None = None) -> None:
    from rich.console import Console

    from gkd_core.distillation.conduct import execute, recorder_of, run_directory
    from gkd_core.distributed.ranks import is_first, set_patience
    from gkd_core.parallel.launch import started_by_gkd
    from gkd_core.plugins import registry
    from gkd_core.runs.default_method import as_built
    from gkd_core.runs.run import Run, prepare_run

    if is_first() and not started_by_gkd(os.environ):
        show_warnings(resolved)
    sinks = registry().make_sinks(resolved.config) if is_first() else []
    specs = prepare_run(resolved, registry())
    resolved = as_built(resolved, specs)
    count = ranks_to_start(resolved)
    set_patience(resolved.config.parallel.timeout)
    differences = () if resumption is None else _check(resolved, resumption, specs)
    with run_directory(resolved, mode) as (directory, lease), resumable(directory):
        if count and lease is not None:
            start_ranks(count, lease, resumption is not None and resumption.accepts)
            return
        recorder = recorder_of(resolved, directory, sinks, Console())
        run = Run(resolved, registry(), specs, directory, recorder, lease)
        if resumption is not None:
            run.contents, run.differences = resumption.contents, differences
        with recorder.record(run.info, resolved.values()):
            _print_summary(run, execute(run))


def _check(
    resolved: Resolved, resumption: Resumption, specs: list[StageSpec]
) -> tuple[Difference, ...]:
    """Return on every rank what is not as it was when the run began."""
    from gkd_core.distributed.ranks import is_first, tell
    from gkd_core.plugins import registry

    return tell(resumption.check(resolved, registry(), specs) if is_first() else ())


def _print_summary(run: Run, summary: RunSummary | None) -> None:
    """Print the comparison, and where everything is.

    Raises:
        Exception: A plugin failed while the models were compared; everything else is done.
    """
    from rich.console import Console

    if summary is None:
        return
    console = Console()
    if summary.comparison is not None:
        console.print(summary.comparison.table())
    for sentence in summary.verdict:
        console.print(_wrapped(sentence, console.width), highlight=False, markup=False)
    for name, path in (
        ("student", run.student),
        ("report", summary.report),
        ("log", run.directory / LOG),
    ):
        console.print(f"{name:<8} {path}", highlight=False, markup=False, soft_wrap=True)
    if summary.failure is not None:
        raise summary.failure


def _wrapped(sentence: str, width: int) -> str:
    """Break a sentence into lines, but not within its flags, which people copy."""
    whole = re.sub(r"\(--[^)]*\)", lambda flag: flag[0].replace(" ", "\0"), sentence)
    return textwrap.fill(whole, width, break_on_hyphens=False).replace("\0", " ")


def _resume(options: RunOptions, accepts: bool) -> tuple[Resolved, Resumption]:
    """Return the configuration of the run to resume, and what the run has left.

    Raises:
        ConfigError: There is no such run, or it was begun with other settings.
    """
    from gkd_core.config.resolve import resolve
    from gkd_core.distributed.ranks import is_first, wait
    from gkd_core.errors import ConfigError
    from gkd_core.lease import refuse_held
    from gkd_core.plugins import registry
    from gkd_core.runs.default_method import as_begun_before
    from gkd_core.runs.directory import restore_replaced
    from gkd_core.runs.resumption import Resumption, refuse_cut

    chosen = options.flags.get("output")
    if chosen is None:
        raise ConfigError("--resume needs the directory of the run: add --output DIR")
    chosen = os.path.expanduser(chosen)
    if is_first():
        refuse_held(Path(chosen))
        restore_replaced(Path(chosen))
    wait()
    stored = Path(chosen) / CONFIG
    if not stored.exists():
        raise ConfigError(f"{chosen} contains no run to resume. Omit --resume to start one")
    before = resolve(registry(), files=[stored])  # complete, so task defaults are not needed
    now = as_begun_before(options.resolve(base=[stored], before=before))
    resumption = Resumption(Path(chosen), before, accepts)
    resumption.check_settings(now)  # other settings may name other rows and models
    if accepts:
        refuse_cut(stored)
    return now, resumption
