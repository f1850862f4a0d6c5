"""`CellProcess`: a cell that runs in a process of this machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from gkd_core.launchers import local
from gkd_core.studies.cell import Cell
from gkd_core.studies.execution import job_of
from gkd_core.studies.needs import Needs
from gkd_core.studies.run_cell import settle
from gkd_core.studies.study_folder import StudyFolder


@dataclass(frozen=True)
class CellProcess:
    """A cell that runs in a process of this machine.

    Attributes:
        folder: The folder of the study.
        cell: The cell.
        process: The process.
    """

    folder: StudyFolder
    cell: Cell
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: StudyFolder, cell: Cell, threads: int) -> CellProcess:
        """Start a cell, or continue it where it was stopped.

        Args:
            folder: The folder of the study.
            cell: The cell.
            threads: Threads that it may use.
        """
        job = job_of(folder, cell, threads, Needs.of(folder))
        return cls(folder, cell, local.start(job, threads))

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in which way ever."""
        status = self.process.poll()
        if status is None:
            return False
        settle(self.folder, self.cell, status)
        return True

    def stop(self) -> None:
        """Ask it to save a checkpoint and end, and wait for it; kill it if it takes too long."""
        local.stop([self.process])
        settle(self.folder, self.cell, self.process.returncode)
