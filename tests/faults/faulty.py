"""`gkd` with faults at its writes: the code of a process of its own."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import gkd_core.cli

ERRORS = {
    "full": errno.ENOSPC,
    "quota": errno.EDQUOT,
    "read-only": errno.EROFS,
    "stale": errno.ESTALE,
    "broken": errno.EIO,
}
"""Errors of each write from one on, by kind."""

OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Faults:
    """Something happens at a write, and perhaps at all later ones.

    Args:
        folder: Writes below it count.
        at: The number of the write, from 1; 0: none. Of kind `size`: bytes that a file may have.
            Of kind `slow`: milliseconds by which a step takes longer.
        kind: `kill`, `stop` (a signal that asks for an end), `removed` (the folder), `size`,
            `slow`, or one of `ERRORS`.
    """

    def __init__(self, folder: str, at: int, kind: str) -> None:
        self.folder, self.at, self.kind = folder, at, kind
        self.writes = 0

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Count an operation that Python is about to carry out."""
        if not self._writes(event, arguments):
            return
        self.writes += 1
        number = ERRORS.get(self.kind)
        if number and 0 < self.at <= self.writes and event in ("open", "os.mkdir"):
            raise OSError(number, os.strerror(number), str(arguments[0]))
        if self.writes == self.at and self.kind in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)
        if self.writes == self.at and self.kind == "removed":
            shutil.rmtree(self.folder)

    def _writes(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            is_write = isinstance(flags, int) and bool(flags & WRITING)
        else:
            path, is_write = (arguments or (None,))[0], event in OPERATIONS
        return is_write and isinstance(path, (str, Path)) and str(path).startswith(self.folder)


def main(counted: str, folder: str, at: str, kind: str, *arguments: str) -> None:
    """Run `gkd` with faults, and write into a file how often it has written.

    Args:
        counted: The file.
        folder: See `Faults`, as what follows it.
        at: A number.
        kind: Its name.
        *arguments: Those of `gkd`.
    """
    faults = Faults(folder, int(at), kind)
    _make_brief()
    if kind == "slow":
        _make_slow(int(at) / 1000)
    if kind == "size" and int(at):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), resource.RLIM_INFINITY))
    sys.addaudithook(faults.hear)
    try:
        gkd_core.cli.main(list(arguments))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(counted).write_text(str(faults.writes))


def _make_brief() -> None:
    """Make the summary of a run brief, which takes longer than to train a tiny model."""
    from gkd_core.analysis import compare, comparison, figures
    from gkd_core.deploy import latency

    latency.ROUNDS, comparison.RESAMPLES, compare.TIMED_SAMPLES = 1, 20, 2
    figures.svg = lambda figure: ""


def _make_slow(seconds: float) -> None:
    """Make steps slow, so that what happens while they are taken can be chosen."""
    from gkd_core.training import loop

    def step(*arguments, real=loop.train_step):
        time.sleep(seconds)
        return real(*arguments)

    loop.train_step = step
