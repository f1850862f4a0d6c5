"""`check_launcher`: checks of the properties that every launcher must have."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher

WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('done'); sys.exit({status})"
WAIT = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text('stopped')
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text('waiting')
time.sleep(60)
"""
PATIENCE = 60
"""Seconds that a command has to begin."""


def check_launcher(launcher: type[Launcher], options: Mapping[str, Any] | None = None) -> None:
    """Check a launcher that runs cells itself, rather than handing them to a queue.

    It runs every command once, tells when each begins and how it ends, in this order, and asks
    those that run to stop when it is closed.

    Args:
        launcher: The class.
        options: Options that differ from their defaults.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    with TemporaryDirectory() as folder:
        _check_statuses(launcher(launcher.Config(**(options or {}))), Path(folder))
        _check_closing(launcher(launcher.Config(**(options or {}))), Path(folder))


def _check_statuses(launcher: Launcher, folder: Path) -> None:
    wanted = {"first": 0, "second": 3, "third": 0}
    jobs = [_job(folder, name, WRITE.format(status=status)) for name, status in wanted.items()]
    launcher.check()
    events = list(launcher.launch(_launch(folder, jobs, 2)))
    begun = Counter(event.job.name for event in events if event.status is None)
    assert begun == Counter(list(wanted)), (
        f"each job must begin once, but these began: {dict(begun)}"
    )
    ended = {event.job.name: event.status for event in events if event.status is not None}
    assert ended == wanted, f"the jobs ended with {wanted}, but the events say {ended}"
    for name in wanted:
        assert (folder / name).exists(), f"the command of job {name} was not run"
        _check_order([event for event in events if event.job.name == name], name)


def _check_order(events: Sequence[JobEvent], name: str) -> None:
    first = events[0]
    assert first.status is None, f"job {name} ended before it began"
    assert len(events) == 2, f"job {name} has {len(events)} events, not one begin and one end"


def _check_closing(launcher: Launcher, folder: Path) -> None:
    events = launcher.launch(_launch(folder, [_job(folder, "long", WAIT)], 1))
    first = next(events)
    assert first.status is None, "a job that waits must begin before anything else"
    until = time.monotonic() + PATIENCE
    while not (folder / "long").exists() and time.monotonic() < until:
        time.sleep(0.05)
    events.close()
    said = (folder / "long").read_text()
    assert said == "stopped", "a job that runs when the launcher is closed must get SIGTERM"


def _job(folder: Path, name: str, code: str) -> CellJob:
    command = (sys.executable, "-c", code, str(folder / name))
    return CellJob(name, f"job {name}", command, 1, 2**20, 0.0)


def _launch(folder: Path, jobs: Sequence[CellJob], limit: int) -> Launch:
    return Launch(folder, jobs, ("true",), limit, lambda text: None)
