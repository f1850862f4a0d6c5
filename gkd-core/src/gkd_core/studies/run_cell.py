"""Running one cell: a child process `gkd run`, and a record of how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gkd_core.runs.directory import CONFIG, has_trained
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.study_folder import StudyFolder

TAIL = 2000
"""Characters of its output that are kept as the error of a cell."""


@dataclass
class CellProcess:
    """A cell that is running, or has run, in a child process.

    Attributes:
        folder: The folder of the study.
        cell: The cell.
        process: The process.
    """

    folder: StudyFolder
    cell: Cell
    process: subprocess.Popen[bytes]
    _output: IO[bytes]
    _count: int
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, folder: StudyFolder, cell: Cell, environment: Mapping[str, str]) -> CellProcess:
        """Start a cell, or continue it where it was stopped.

        Args:
            folder: The folder of the study.
            cell: The cell.
            environment: Variables that its process has besides those of this process.
        """
        before = folder.attempt(cell)
        count = 1 if before is None else before.count + 1
        Attempt(count).save(folder.attempt_file(cell))
        output = log_file(folder, cell).open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "gkd_core.cli", *arguments(folder, cell)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches the launcher, which stops its cells
        )
        return cls(folder, cell, process, output, count)

    def ended(self) -> Attempt | None:
        """Return how the cell ended; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self._output.close()
        error = "" if status == 0 else tail(log_file(self.folder, self.cell))
        attempt = Attempt(self._count, status, error, time.monotonic() - self._began)
        attempt.save(self.folder.attempt_file(self.cell))
        return attempt


def arguments(folder: StudyFolder, cell: Cell) -> list[str]:
    """Return the arguments of `gkd` that run a cell.

    A run of other code is not continued but replaced: its parts would not fit together.
    """
    directory, config = folder.run_directory(cell), folder.config_file(cell.name)
    if not (directory / CONFIG).exists():
        return ["run", str(config), "--output", str(directory)]
    if has_trained(directory) and not folder.is_of_other_code(cell):
        return ["run", "--resume", "--output", str(directory)]
    return ["run", str(config), "--overwrite", "--output", str(directory)]


def log_file(folder: StudyFolder, cell: Cell) -> Path:
    """Return the file with what a cell prints."""
    return folder.attempt_file(cell).with_suffix(".log")


def tail(path: Path) -> str:
    """Return the end of what a cell has printed."""
    text = path.read_bytes().decode(errors="replace").strip()
    return text if len(text) <= TAIL else f"...{text[-TAIL:]}"
