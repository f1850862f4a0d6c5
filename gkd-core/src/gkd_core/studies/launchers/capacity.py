"""How many cells a machine can run at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from gkd_core.contract.launcher import CellJob


@dataclass(frozen=True)
class Capacity:
    """How many cells run at a time, with how many threads each.

    Attributes:
        jobs: Cells at a time.
        threads: Threads of each.
    """

    jobs: int
    threads: int

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return f"{self.jobs} at a time, {self.threads} thread{plural} each"

    @classmethod
    def of_machine(cls, jobs: Sequence[CellJob], limit: int | None) -> Capacity:
        """Return what this machine has room for.

        Args:
            jobs: The cells.
            limit: Cells at a time, if that is given.
        """
        cores = free_cores()
        threads = max((job.threads or 1 for job in jobs), default=1)
        memory = max((job.memory for job in jobs), default=1)
        fitting = min(cores // threads, int(free_memory() // memory), gpu_slots(jobs))
        chosen = limit or max(1, min(fitting, len(jobs)))
        given = any(job.threads for job in jobs)
        return cls(chosen, threads if given else max(1, cores // chosen))


def free_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not everywhere
        return os.cpu_count() or 1


def free_memory() -> float:
    """Return the bytes that processes can still take; infinity if the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            found = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(found["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


def gpu_slots(jobs: Sequence[CellJob]) -> int:
    """Return how many cells the GPUs of this machine have room for; no limit without need of one.

    All cells use the first GPU that they see, so that more than one takes CUDA_VISIBLE_DEVICES.
    """
    share = max((job.gpus for job in jobs), default=0.0)
    return max(1, int(1 / share)) if share else len(jobs) or 1
