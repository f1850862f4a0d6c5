"""`Local`: runs cells as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator

from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher
from gkd_core.parallel.launch import LAUNCHER
from gkd_core.studies.launchers.capacity import Capacity

POLL = 0.1
GRACE = 120
"""Seconds that cells have to save a checkpoint before they are killed."""


class Local(Launcher):
    """Processes of this machine, as many as its memory and its cores allow."""

    name = "local"

    def launch(self, launch: Launch) -> Generator[JobEvent, None, None]:
        """Run cells; whoever is left when the caller stops saves a checkpoint and ends."""
        capacity = Capacity.of_machine(launch.jobs, launch.limit)
        launch.say(str(capacity))
        waiting = deque(launch.jobs)
        running: list[tuple[CellJob, subprocess.Popen[bytes]]] = []
        try:
            while waiting or running:
                while waiting and len(running) < capacity.jobs:
                    job = waiting.popleft()
                    running.append((job, start(job, capacity.threads)))
                    yield JobEvent(job)
                for job, process in list(running):
                    if process.poll() is not None:
                        running.remove((job, process))
                        yield JobEvent(job, process.returncode)
                time.sleep(POLL)
        finally:
            stop([process for _, process in running])


def start(job: CellJob, threads: int) -> subprocess.Popen[bytes]:
    """Start the process of a cell, which dies with this one.

    Args:
        job: The cell.
        threads: Threads that it may use.
    """
    own = {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    return subprocess.Popen(
        job.command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **own},
        start_new_session=True,  # Ctrl-C reaches the launcher, which stops its cells
    )


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, wait for them, and kill those that take too long."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
