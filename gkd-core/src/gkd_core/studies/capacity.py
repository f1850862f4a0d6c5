"""How many cells a machine can run at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass

MEMORY = 1.5 * 2**30
"""Bytes that a cell takes if nothing tells."""


@dataclass(frozen=True)
class Capacity:
    """How many cells run at a time, with how many threads each.

    Attributes:
        jobs: Cells at a time.
        threads: Threads of each.
    """

    jobs: int
    threads: int

    @classmethod
    def of_machine(
        cls, cells: int, jobs: int | None, threads: int | None, memory: float = MEMORY
    ) -> Capacity:
        """Return what this machine has room for.

        Args:
            cells: Number of cells.
            jobs: Cells at a time, if that is given.
            threads: Threads of each, if that is given.
            memory: Bytes that a cell takes.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = cores or 1
        fitting = max(1, min(cores // (threads or 1), int(free_memory() // memory)))
        chosen = jobs or min(fitting, max(cells, 1))
        return cls(chosen, threads or max(1, cores // chosen))


def free_memory() -> float:
    """Return the bytes that processes can still take; infinity if the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            found = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(found["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")
