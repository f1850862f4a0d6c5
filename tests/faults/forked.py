"""Commands in children that are forked from a warmed process, and faults at their writes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path

OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Faults:
    """Something happens at a write, and perhaps at all later ones.

    Args:
        folder: Writes below it count.
        at: The number of the write, from 1; 0: none.
        kind: `kill`, `stop` (a signal that asks for an end) or `full` (from then on).
    """

    def __init__(self, folder: Path, at: int, kind: str) -> None:
        self.folder, self.at, self.kind = str(folder), at, kind
        self.writes = 0

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Count an operation that Python is about to carry out."""
        if not self._writes(event, arguments):
            return
        self.writes += 1
        if self.kind == "full" and 0 < self.at <= self.writes and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        if self.writes == self.at and self.kind != "full":
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)

    def _writes(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            is_write = isinstance(flags, int) and bool(flags & WRITING)
        else:
            path, is_write = (arguments or (None,))[0], event in OPERATIONS
        return is_write and isinstance(path, (str, Path)) and str(path).startswith(self.folder)


def run(folder: Path, *arguments: object, at: int = 0, kind: str = "kill") -> tuple[int, str, int]:
    """Run `gkd` in a child.

    Args:
        folder: Where it runs; it keeps its cache there, too.
        *arguments: Its arguments.
        at: The write at which something happens; 0: none.
        kind: What; see `Faults`.

    Returns:
        Its exit status, or minus the number of the signal that killed it; what it said; the
        number of its writes.
    """
    said, counted = folder / "said.txt", folder / "writes.txt"
    child = os.fork()
    if child == 0:
        _child(folder, [str(each) for each in arguments], Faults(folder / "out", at, kind), said)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    writes = int(counted.read_text()) if counted.exists() else 0
    return status, said.read_text(), writes


def warm() -> None:
    """Import once, in the parent, what all children need."""
    from gkd_core.plugins import registry

    registry()
    for name in ("cli.run", "runs.run", "analysis.run_summary", "deploy.latency"):
        import_module(f"gkd_core.{name}")


def _make_brief() -> None:
    """Make the summary of a run brief, which takes longer than to train a tiny model."""
    from gkd_core.analysis import comparison, figures
    from gkd_core.deploy import latency

    latency.ROUNDS, comparison.RESAMPLES, comparison.TIMED_SAMPLES = 1, 20, 2
    figures.svg = lambda figure: ""


def _child(folder: Path, arguments: list[str], faults: Faults, said: Path) -> None:
    from gkd_core.cli import main

    status = 99
    try:
        os.chdir(folder)
        os.environ["GKD_CACHE"] = str(folder / "cache")
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        _make_brief()
        warnings.resetwarnings()  # in tests they are errors
        sys.addaudithook(faults.hear)
        main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "writes.txt").write_text(str(faults.writes))
        os._exit(status)
