"""`Local`: runs cells as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher
from gkd_core.launchers.capacity import Capacity
from gkd_core.parallel.launch import LAUNCHER

POLL = 0.1
GRACE = 120
"""Seconds that cells have to save a checkpoint before they are killed."""


class Local(Launcher):
    """Processes of this machine, as many as its memory, its cores and its GPUs allow."""

    name = "local"

    def launch(self, launch: Launch) -> Generator[JobEvent, None, None]:
        """Run cells; whoever is left when the caller stops saves a checkpoint and ends."""
        capacity = Capacity.of_machine(launch.jobs, launch.limit)
        launch.say(str(capacity))
        waiting, places = deque(launch.jobs), deque(capacity.devices or [None] * capacity.jobs)
        running: list[Running] = []
        try:
            while waiting or running:
                while waiting and places:
                    job, place = waiting.popleft(), places.popleft()
                    running.append(Running(job, place, start(job, capacity.threads, place)))
                    yield JobEvent(job)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    places.append(each.place)
                    yield JobEvent(each.job, each.process.returncode)
                time.sleep(POLL)
        finally:
            stop([each.process for each in running])


@dataclass(frozen=True)
class Running:
    """A cell that is running.

    Attributes:
        job: The cell.
        place: Its GPUs, as in `CUDA_VISIBLE_DEVICES`; None if it needs none.
        process: Its process.
    """

    job: CellJob
    place: str | None
    process: subprocess.Popen[bytes]


def start(job: CellJob, threads: int, place: str | None = None) -> subprocess.Popen[bytes]:
    """Start the process of a cell, which dies with this one.

    Args:
        job: The cell.
        threads: Threads that it may use.
        place: The GPUs that it may use, as in `CUDA_VISIBLE_DEVICES`; None for all.
    """
    own = {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    own |= {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
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
