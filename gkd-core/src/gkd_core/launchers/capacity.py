"""The number of cells that a machine can run at a time."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from gkd_core.contract.launcher import CellJob
from gkd_core.errors import ConfigError
from gkd_core.launchers.gpus import gpus


@dataclass(frozen=True)
class Capacity:
    """The number of cells that run at a time, and the threads of each.

    Attributes:
        jobs: Cells at a time.
        threads: Threads of each.
        devices: The GPUs of each of these cells, as in `CUDA_VISIBLE_DEVICES`; empty if they need
            none.
    """

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        on = f", on the GPUs {', '.join(sorted(set(self.devices)))}" if self.devices else ""
        return f"{self.jobs} at a time, {self.threads} thread{plural} each{on}"

    @classmethod
    def of_machine(cls, jobs: Sequence[CellJob], limit: int | None) -> Capacity:
        """Return the capacity of this machine.

        Args:
            jobs: The cells.
            limit: Cells at a time, if that is given.
        """
        cores = free_cores()
        threads = max((job.threads or 1 for job in jobs), default=1)
        memory = max((job.memory for job in jobs), default=1)
        share = max((job.gpus for job in jobs), default=0.0)
        places = gpu_places(share) if share else [""] * len(jobs)
        fitting = min(cores // threads, int(free_memory() // memory), len(places))
        chosen = limit or max(1, min(fitting, len(jobs)))
        given = any(job.threads for job in jobs)
        devices = tuple(itertools.islice(itertools.cycle(places), chosen)) if share else ()
        return cls(chosen, threads if given else max(1, cores // chosen), devices)


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


def gpu_places(share: float) -> list[str]:
    """Return the GPUs of each cell that this machine has room for at a time.

    Neighbors are on different GPUs.

    Args:
        share: How many GPUs a cell needs, or which share of one.

    Raises:
        ConfigError: There are too few.
    """
    found = gpus()
    names = [gpu.name for gpu in found]
    if len(found) < share:
        raise ConfigError(
            f"a cell needs {math.ceil(share)} GPUs, of which this machine has {len(found)}. Lower "
            "parallel.nproc, or add --set parallel.device=cpu"
        )
    if share >= 1:
        each = math.ceil(share)
        return [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]
    rooms = {gpu.name: int(gpu.free / (share * gpu.size)) for gpu in found}
    rounds = sorted((count, names.index(name)) for name in names for count in range(rooms[name]))
    return [names[number] for _, number in rounds] or [max(found, key=lambda gpu: gpu.free).name]
