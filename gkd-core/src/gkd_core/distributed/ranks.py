"""The processes of a run: which this one is, and what they tell each other.

A run in a single process is one of one rank: everything here then costs nothing.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from gkd_core.distributed.rank_info import RankInfo

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others, such as for the first to save a large student."""

GRACE = 15.0
"""Seconds in which whoever broke a connection may say why."""

LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
)
FAILED = "gkd/failed"

_store: Store | None = None


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes(nproc: int) -> int:
    """Return how many processes a run has or, before they are started, will have.

    Args:
        nproc: How many are to be started.
    """
    return dist.get_world_size() if dist.is_initialized() else nproc


def is_first() -> bool:
    """Tell whether this is the process that writes and speaks for all."""
    return rank() == 0


def init_process_group(info: RankInfo) -> None:
    """Meet the other ranks.

    gloo connects what is on CPUs and NCCL what is on GPUs, so that counting does not wait for a
    GPU.
    """
    global _store
    info.export()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    _store, number, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=PATIENCE)


def leave() -> None:
    """Part from the other ranks; this process is then alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier would ask for a GPU


def tell(value: Value) -> Value:
    """Return what the first rank calls this with."""
    told = [value]
    if world_size() > 1:
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    return told[0]


def first_failure(status: int) -> int | None:
    """Note that this rank fails.

    Args:
        status: The exit status it would end with.

    Returns:
        None if it is the first to fail, else the exit status of the one that was.
    """
    if _store is None:
        return None
    try:
        first = int(_store.compare_set(FAILED, "", f"{rank()}:{status}").decode().split(":")[0])
        return None if first == rank() else int(_store.get(FAILED).decode().split(":")[1])
    except (
        RuntimeError,
        ValueError,
    ):  # Whoever held the store is gone, so was not the last to fail.
        return status


def lost_connection(error: BaseException) -> bool:
    """Tell whether an error says no more than that another rank is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LOST)


def wait_for_reason() -> bool:
    """Wait for the rank that is gone to have said why; return whether it did."""
    end = time.monotonic() + GRACE
    while _store is not None and time.monotonic() < end:
        try:
            if _store.check([FAILED]):
                return True
        except RuntimeError:
            return False
        time.sleep(0.2)
    return False
