"""Steps of a run that the command and Python share: its directory, its recorder, its execution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gkd_core.config.render import to_toml
from gkd_core.config.resolve import Resolved
from gkd_core.contract.sink import Sink
from gkd_core.distributed.ranks import is_first, leave, rank, tell
from gkd_core.lease import Lease
from gkd_core.plugins import registry
from gkd_core.runs.directory import Mode, free_directory, open_directory, run_name
from gkd_core.runs.run import Run
from gkd_core.runs.run_files import LOG, METRICS
from gkd_core.tracking.display import display
from gkd_core.tracking.recorder import JsonLines, Recorder, TextLog

if TYPE_CHECKING:
    from gkd_core.analysis.run_summary import RunSummary


@contextmanager
def run_directory(resolved: Resolved, mode: Mode) -> Iterator[tuple[Path, Lease | None]]:
    """Hold the run directory, which the first rank creates and broadcasts to the others.

    Args:
        resolved: The configuration.
        mode: What to do if the directory already exists.

    Raises:
        ConfigError: The directory cannot be used.
    """
    chosen = resolved.config.output.dir
    directory = Path(chosen) if chosen else free_directory(run_name(resolved))
    held = open_directory(directory, mode, to_toml(resolved)) if is_first() else nullcontext()
    with held as lease:
        yield tell(directory), lease


def recorder_of(
    resolved: Resolved, directory: Path, sinks: Sequence[Sink], console: Console
) -> Recorder:
    """Return the recorder; on ranks other than the first, it writes at most a log.

    Args:
        resolved: The configuration.
        directory: The run directory.
        sinks: The trackers.
        console: Where progress is shown.
    """
    if not is_first():
        own = TextLog(directory / f"log-{rank()}.txt")
        return Recorder([own] if resolved.config.output.every_log else [])
    listeners = (
        display(console),
        TextLog(directory / LOG),
        JsonLines(directory / METRICS),
    )
    return Recorder(listeners, sinks, registry().blame)


def execute(run: Run) -> RunSummary | None:
    """Train the stages of a run, and summarize it; None on ranks other than the first."""
    from gkd_core.analysis.run_summary import needs_all_ranks, summarize_run

    run.execute()
    speaks, together = is_first(), needs_all_ranks(run)
    if not together:
        leave()
    return summarize_run(run) if speaks or together else None
