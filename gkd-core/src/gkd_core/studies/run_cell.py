"""Running one cell in this process, with a record of how it ended."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from gkd_core.launchers.gpus import share_taken
from gkd_core.launchers.logged import tail
from gkd_core.lease import hold
from gkd_core.runs.directory import has_trained
from gkd_core.runs.run_files import CONFIG
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.study_folder import StudyFolder


def run_cell(folder: StudyFolder, cell: Cell, run: Callable[[Sequence[str]], int]) -> int:
    """Run a cell, or continue it where it was stopped; one that is finished is left alone.

    Args:
        folder: The folder of the study.
        cell: The cell.
        run: Runs `gkd` with arguments, and returns its exit status.

    Returns:
        The exit status.

    Raises:
        HeldElsewhere: Another process runs the cell. If that was on another machine, this one
            waits for a sign of life, as the machine may be gone.
    """
    with hold(folder.attempt_file(cell)):
        if folder.is_over(cell) and not folder.is_of_other_code(cell):
            return 0
        before = folder.attempt(cell)
        count = 1 if before is None else before.count + 1
        Attempt(count).save(folder.attempt_file(cell))
        began = time.monotonic()
        with _output_to(folder.log_file(cell)):
            status = _guarded(run, arguments(folder, cell))
        error = "" if status == 0 else tail(folder.log_file(cell))
        seconds = time.monotonic() - began
        done = Attempt(count, status, error, seconds, _peak_memory(), share_taken())
        done.save(folder.attempt_file(cell))
        return status


def settle(folder: StudyFolder, cell: Cell, status: int) -> Attempt | None:
    """Note how a cell ended whose process could not do so, because it was killed.

    Args:
        folder: The folder of the study.
        cell: The cell.
        status: Exit status of its process, or minus the number of the signal that killed it.

    Returns:
        How the cell ended.
    """
    attempt = folder.attempt(cell)
    if attempt is None or attempt.status is not None or folder.holder(cell) is not None:
        return attempt
    error = "" if status == 0 else f"{tail(folder.log_file(cell))}\nended with {status}".strip()
    settled = Attempt(attempt.count, status, error)
    settled.save(folder.attempt_file(cell))
    return settled


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


def _guarded(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Return the exit status; errors that only a developer can fix are printed."""
    try:
        return run(arguments)
    except Exception:
        traceback.print_exc()
        return 1


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Write to a file what this process and its children print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    before = [os.dup(number) for number in (1, 2)]
    with path.open("w", buffering=1) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            _flush()
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _peak_memory() -> int:
    """Return the bytes that this process has taken at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
