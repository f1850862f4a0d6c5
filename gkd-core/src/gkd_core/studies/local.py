"""`LocalLauncher`: runs cells as processes of this machine, several at a time."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.run_cell import CellProcess
from gkd_core.studies.study_folder import StudyFolder

POLL = 0.1
GRACE = 120
"""Seconds that cells have to save a checkpoint before they are killed."""


@dataclass(frozen=True)
class CellEvent:
    """Something that happened to a cell.

    Attributes:
        cell: The cell.
        attempt: How it ended; None when it begins.
    """

    cell: Cell
    attempt: Attempt | None = None


@dataclass
class LocalLauncher:
    """Runs cells as processes of this machine.

    Attributes:
        jobs: Number of cells at a time.
        threads: Threads of each.
    """

    jobs: int
    threads: int
    _running: list[CellProcess] = field(default_factory=list, init=False)

    def launch(self, folder: StudyFolder, cells: Sequence[Cell]) -> Iterator[CellEvent]:
        """Run cells; yield when one begins, and when one ends.

        If the caller is interrupted, the cells that are running save a checkpoint and end.

        Args:
            folder: The folder of the study.
            cells: The cells, in the order in which they are to begin.
        """
        waiting = deque(cells)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs:
                    self._start(folder, waiting[0])
                    yield CellEvent(waiting.popleft())
                yield from self._ended()
                time.sleep(POLL)
        finally:
            self._stop()

    def _start(self, folder: StudyFolder, cell: Cell) -> None:
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        self._running.append(CellProcess.start(folder, cell, environment))

    def _ended(self) -> Iterator[CellEvent]:
        for running in list(self._running):
            attempt = running.ended()
            if attempt is not None:
                self._running.remove(running)
                yield CellEvent(running.cell, attempt)

    def _stop(self) -> None:
        """Ask the cells that are running to stop, and wait for them."""
        for running in self._running:
            running.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        while self._running and time.monotonic() < until:
            list(self._ended())
            time.sleep(POLL)
        for running in self._running:
            running.process.kill()
            running.process.wait()
        list(self._ended())
