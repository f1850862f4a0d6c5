"""The display of a running study, and of a finished one."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gkd_core.analysis.sizes import readable
from gkd_core.cli.errors import FAILURE, RESUMABLE
from gkd_core.launchers.logged import reason
from gkd_core.runs.run_files import RESULTS
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.forecast import GroupForecast, disk
from gkd_core.studies.predicted_time import PredictedTime
from gkd_core.studies.study_config import Keep
from gkd_core.studies.study_folder import StudyFolder

STYLES = {
    CellState.FINISHED: "green",
    CellState.FAILED: "red",
    CellState.STALE: "yellow",
    CellState.DROPPED: "dim",
}


class StudyProgress:
    """Shows the progress of a study on the screen: a line for each cell that ends, and a bar."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._done: Counter[CellState] = Counter()
        self._bar = Bar(self._console)
        self._total = 0

    def start(self, folder: StudyFolder, unknown: int) -> None:
        """Show the cells of a study, and which were dropped.

        Args:
            folder: The folder of the study.
            unknown: Number of cells that become known once trials are over.
        """
        more = f"; {unknown} more once their learning rates are tuned" if unknown else ""
        self.say(f"study {folder.path}: {counted(folder)}{more}")
        for note in status_notes(folder):
            self.say(note)

    def say(self, text: str) -> None:
        """Show a line about the whole."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def of(self, cells: Sequence[Cell]) -> Iterator[None]:
        """Show cells while they run."""
        self._total += len(cells)
        self.say(f"{len(cells)} to run")
        with self._bar.up_to(self._total):
            yield

    def begin(self, cell: Cell) -> None:
        """Show that a cell has begun."""
        self._bar.begin(cell)

    def end(self, folder: StudyFolder, cell: Cell, attempt: Attempt | None) -> None:
        """Show how a cell ended."""
        self._bar.end(cell)
        state = folder.state(cell)
        self._done[state] += 1
        number, width = sum(self._done.values()), len(str(self._total))
        took = timedelta(seconds=round(attempt.seconds if attempt else 0))
        self._console.print(
            f"[dim]{number:>{width}}/{self._total}[/]  [{STYLES.get(state, 'none')}]{state:<8}[/]"
            f"  {took}  {escape(cell.label)}  {escape(_about(folder, cell, state))}",
            soft_wrap=True,
        )

    def finish(self, folder: StudyFolder, left: Sequence[Cell]) -> None:
        """Print the states of the cells and the next steps.

        Args:
            folder: The folder of the study as it is now.
            left: The cells of this command that are not over.

        Raises:
            SystemExit: Some have failed or are left.
        """
        self.say(f"study {folder.path}: {counted(folder)}")
        if left:
            self.say(
                f"not all is done: {len(left)} of its cells were stopped, or are held by another "
                "command; repeat this one to continue"
            )
        if self._done[CellState.FAILED]:
            self.say(f"what failed, and why: gkd study status {shlex.quote(str(folder.path))}")
            sys.exit(FAILURE)
        if left:
            sys.exit(RESUMABLE)


class Bar:
    """The progress bar of a study, with the cells that are running.

    Args:
        console: The screen; nothing is shown if it is not a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._running: list[Cell] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("cells", total=0)

    @contextmanager
    def up_to(self, total: int) -> Iterator[None]:
        """Show the bar for a number of cells, those that have ended included."""
        self._bar.update(self._task, total=total)
        with self._bar:
            yield

    def begin(self, cell: Cell) -> None:
        """Show that a cell is running."""
        self._running.append(cell)
        self._describe()

    def end(self, cell: Cell) -> None:
        """Show that a cell has ended."""
        self._running.remove(cell)
        self._bar.advance(self._task)
        self._describe()

    def _describe(self) -> None:
        labels = "; ".join(cell.label for cell in self._running)
        self._bar.update(self._task, description=labels or "cells")


def counted(folder: StudyFolder) -> str:
    """Return the number of a study's cells in each state, as in `3 finished, 2 waiting`."""
    states = Counter(folder.state(cell) for cell in folder.cells)
    found = ", ".join(f"{states[state]} {state}" for state in CellState if states[state])
    return f"{len(folder.cells)} cells: {found}"


def status_table(folder: StudyFolder) -> Table:
    """Return the table of the cells of a study."""
    table = Table(caption=counted(folder), caption_justify="left", box=None, padding=(0, 2, 0, 0))
    axes = list(dict.fromkeys(axis for cell in folder.cells for axis in cell.coordinates))
    for column in (*axes, "state", "", "cell"):
        table.add_column(column, overflow="fold")
    for cell in folder.cells:
        state = folder.state(cell)
        values = (str(cell.coordinates.get(axis, "")) for axis in axes)
        shown = quality(folder, cell) if state is CellState.FINISHED else ""
        table.add_row(*values, f"[{STYLES.get(state, 'none')}]{state}[/]", shown, cell.name)
    return table


def status_notes(folder: StudyFolder) -> Iterator[str]:
    """Yield what is to say of the cells of a study that are not simply finished or waiting.

    With it, how long cells took and were predicted to take, if that is known.
    """
    dropped = Counter(cell.reason for cell in folder.cells if cell.reason)
    yield from (f"dropped ({count}): {why}" for why, count in dropped.items())
    for cell in folder.cells:
        state = folder.state(cell)
        if state not in (CellState.FINISHED, CellState.DROPPED) and (
            about := _about(folder, cell, state)
        ):
            yield f"{state} {cell.name} ({cell.label}): {about}"
    time = PredictedTime.of(folder)
    if time is not None:
        yield str(time)


def forecast_table(groups: Sequence[GroupForecast], keep: Keep) -> Table:
    """Return the table of what the cells of a study will cost.

    Args:
        groups: What cells cost that differ by seed only.
        keep: Which students stay on the disk.
    """
    total = timedelta(seconds=round(sum(group.seconds for group in groups)))
    caption = (
        f"{sum(group.cells for group in groups)} cells, {total} one after the other with the "
        f"trials of learning rates; {readable(disk(groups, keep))} on the disk"
    )
    table = Table(caption=caption, caption_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("cells of", overflow="fold")
    gpu = ["of a GPU"] if any(group.cost is not None and group.cost.gpu for group in groups) else []
    for column in ("number", "each", "all", "memory", *gpu):
        table.add_column(column, justify="right")
    for group in groups:
        if group.cost is None:
            table.add_row(escape(group.label), str(group.cells), "?", "?", "?")
            table.add_row(f"  [red]{escape(reason(group.failure))}[/]")
            continue
        times = (str(timedelta(seconds=round(t))) for t in (group.each[1.0], group.seconds))
        taken = [readable(group.cost.memory), *(f"{group.cost.gpu:.0%}" for _ in gpu)]
        table.add_row(escape(group.label), str(group.cells), *times, *taken)
    return table


def _about(folder: StudyFolder, cell: Cell, state: CellState) -> str:
    """Return the relevant information about a cell in its state."""
    if state is CellState.DROPPED:
        return cell.reason
    if state is CellState.FAILED:
        return reason(folder.failure(cell))
    if state is CellState.RUNNING:
        return f"by {folder.holder(cell)}"
    if state is CellState.STALE:
        return f"of gkd {folder.version(cell)}, other code; --rerun-stale runs it again"
    if state is CellState.WAITING:
        return "stopped; repeat the command to continue" if folder.attempt(cell) else ""
    return quality(folder, cell)


def quality(folder: StudyFolder, cell: Cell) -> str:
    """Return the main metric of the student of a finished cell, as in `accuracy 0.52`."""
    results = json.loads((folder.run_directory(cell) / RESULTS).read_text())
    value = results["rows"][-1]["metrics"].get(results["metric"])
    return f"{results['metric']} {'none' if value is None else f'{value:.3f}'}"
