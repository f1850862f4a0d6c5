"""Running a study: wave by wave, until nothing is left to run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Protocol

from gkd_core.contract.launcher import CellJob, Launch, Launcher
from gkd_core.launchers.shard import Shard
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.keeping import remove_students
from gkd_core.studies.needs import Needs
from gkd_core.studies.run_cell import settle
from gkd_core.studies.study import Study
from gkd_core.studies.study_folder import StudyFolder


class Watcher(Protocol):
    """Sees how a study proceeds."""

    def start(self, folder: StudyFolder, unknown: int) -> None:
        """See the study as it is at the beginning, and how many cells are not known yet."""

    def of(self, cells: Sequence[Cell]) -> AbstractContextManager[None]:
        """Watch some cells that are about to run."""

    def say(self, text: str) -> None:
        """Say something about the whole."""

    def begin(self, cell: Cell) -> None:
        """See a cell begin."""

    def end(self, folder: StudyFolder, cell: Cell, attempt: Attempt | None) -> None:
        """See a cell end."""


@dataclass(frozen=True)
class Room:
    """The resources that cells may use.

    Attributes:
        jobs: How many run at a time; None for as many as fit.
        threads: Threads of each; None if the launcher decides.
    """

    jobs: int | None
    threads: int | None


@dataclass
class Execution:
    """The execution of a study by one command.

    Attributes:
        study: The study.
        launcher: Starts its cells.
        shard: The share of the cells that this command runs.
        room: The resources that cells may use.
        rerun_stale: Whether to run cells of older code again.
        watcher: Sees how it proceeds.
    """

    study: Study
    launcher: Launcher
    shard: Shard
    room: Room
    rerun_stale: bool
    watcher: Watcher
    _queued: set[str] = field(default_factory=set, init=False)

    def run(self) -> StudyFolder:
        """Run cells until none is left that this command has not tried.

        Returns:
            The folder of the study as it is then.
        """
        self.launcher.check()
        tried: set[str] = set()
        folder = self.study.open()
        self.watcher.start(folder, self.study.unknown(folder))
        while cells := [cell for cell in self._to_run(folder) if cell.name not in tried]:
            with self.watcher.of(cells):
                self._launch(folder, cells)
            tried |= {cell.name for cell in cells}
            folder = self.study.open()
        return folder

    def left(self, folder: StudyFolder) -> list[Cell]:
        """Return the cells of the share that are not over, without those handed to a queue.

        They were stopped, or another process holds them, on a machine that may be gone.

        Args:
            folder: The folder of the study after `run`.
        """
        states = {CellState.WAITING, CellState.RUNNING}
        own = (cell for cell in self._own(folder) if cell.name not in self._queued)
        return [cell for cell in own if folder.state(cell) in states]

    def _own(self, folder: StudyFolder) -> list[Cell]:
        """Return the cells of the share, without those that were dropped."""
        possible = [cell for cell in folder.cells if not cell.reason]
        return self.shard.of(possible, _together(folder))

    def _to_run(self, folder: StudyFolder) -> list[Cell]:
        states = {CellState.WAITING, CellState.FAILED}
        wanted = states | {CellState.STALE} if self.rerun_stale else states
        return [cell for cell in self._own(folder) if folder.state(cell) in wanted]

    def _launch(self, folder: StudyFolder, cells: Sequence[Cell]) -> None:
        queued = {cell.name for cell in cells}
        for cell in launch_cells(folder, cells, self.launcher, self.room, self.watcher):
            queued.discard(cell.name)
            remove_students(folder, self.study.registry)
        self._queued |= queued


def launch_cells(
    folder: StudyFolder, cells: Sequence[Cell], launcher: Launcher, room: Room, watcher: Watcher
) -> Iterator[Cell]:
    """Run cells once; yield each when it has ended.

    Args:
        folder: Their folder.
        cells: The cells.
        launcher: Starts them.
        room: What they may take.
        watcher: Sees how they proceed.
    """
    by_name = {cell.name: cell for cell in cells}
    needs = Needs.of(folder)
    jobs = [job_of(folder, cell, room.threads, needs) for cell in cells]
    launch = Launch(folder.path, jobs, _share(folder, room), room.jobs, watcher.say)
    with closing(launcher.launch(launch)) as events:
        for event in events:
            cell = by_name[event.job.name]
            if event.status is None:
                watcher.begin(cell)
            else:
                watcher.end(folder, cell, settle(folder, cell, event.status))
                yield cell


def _together(folder: StudyFolder) -> Callable[[Cell], str]:
    """Return a rule for the cells that one process runs, so that no process waits for another.

    Cells wait for others that tune their learning rate.
    """
    return (lambda cell: cell.name) if folder.config.tune is None else (lambda cell: cell.group)


def _share(folder: StudyFolder, room: Room) -> tuple[str, ...]:
    """Return the command that runs a share of the cells, one after the other."""
    run = (sys.executable, "-m", "gkd_core.cli", "study", "run", str(folder.path))
    return (*run, "--jobs", "1", "--threads", str(room.threads or 1))


def job_of(folder: StudyFolder, cell: Cell, threads: int | None, needs: Needs) -> CellJob:
    """Return the job that runs a cell.

    Args:
        folder: The folder of the study.
        cell: The cell.
        threads: Threads that it may use; None if the launcher decides.
        needs: What it takes of a machine.
    """
    command = (sys.executable, "-m", "gkd_core.cli", "study", "cell", str(folder.path), cell.name)
    gpus = needs.gpus(folder, cell)
    return CellJob(cell.name, cell.label, command, threads, needs.memory, gpus)
