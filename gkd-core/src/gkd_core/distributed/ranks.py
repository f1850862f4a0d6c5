"""The default process group of a run: ranks, messages between them, and failures.

A run in a single process has one rank: everything here is then free.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import Store, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from gkd_core.distributed.messages import broadcast
from gkd_core.distributed.rank_info import RankInfo

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""The time that a rank waits for the others to begin."""

GRACE = 15.0
"""Seconds to wait for the rank that broke a connection to report why."""

LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
)
LATE = ("timed out waiting", "timed out after")
FAILED = "gkd/failed"

_store: Store | None = None


def rank() -> int:
    """Return the global rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes(nproc: int) -> int:
    """Return the number of processes a run has or, before launch, will have.

    Args:
        nproc: Number of processes to launch.
    """
    return dist.get_world_size() if dist.is_initialized() else nproc


def is_first() -> bool:
    """Return whether this process has rank 0: the one that writes files and prints messages."""
    return rank() == 0


def init_process_group(info: RankInfo) -> None:
    """Initialize the default process group.

    gloo serves tensors on CPUs and NCCL those on GPUs, so that reducing counts does not synchronize
    with a GPU.
    """
    global _store
    info.export()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    place = "env://"
    if info.store is not None:
        place = f"file://{info.store}?rank={info.rank}&world_size={info.world}"
    _store, number, size = next(rendezvous(place))
    dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=PATIENCE)


def set_patience(seconds: float, groups: Iterable[ProcessGroup] = ()) -> None:
    """Set how long a rank waits for the others in the default group and in other ones."""
    if dist.is_initialized():
        for group in (dist.GroupMember.WORLD, *groups):
            _set_pg_timeout(timedelta(seconds=seconds), group)


def leave() -> None:
    """Destroy the default process group, if there is one; this process is then alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Wait until all ranks have arrived."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: `dist.barrier` would need a GPU


def tell(value: Value) -> Value:
    """Broadcast a value from the first rank, and return it on every rank.

    Every rank must call it.

    Args:
        value: None, a boolean, number, text or path, a tensor or array, or a list, tuple, mapping
            or dataclass of these; only that of rank 0 is used.
    """
    return broadcast(value) if world_size() > 1 else value


def any_rank(fact: bool) -> bool:
    """Return whether a fact holds on at least one rank. Every rank must call it."""
    if world_size() == 1:
        return fact
    found = torch.tensor(float(fact))
    dist.all_reduce(found)
    return bool(found)


def first_failure(status: int) -> int | None:
    """Record that this rank fails.

    Args:
        status: The exit status it would end with.

    Returns:
        None if it is the first to fail, else the exit status of the rank that was.
    """
    if _store is None:
        return None
    try:
        first = int(_store.compare_set(FAILED, "", f"{rank()}:{status}").decode().split(":")[0])
        return None if first == rank() else int(_store.get(FAILED).decode().split(":")[1])
    except (
        RuntimeError,
        ValueError,
    ):  # The rank that held the store is gone, so this one was not the first to fail.
        return status


def lost_connection(error: BaseException) -> bool:
    """Return whether an error only reports that another rank is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LOST)


def waited_in_vain(error: BaseException) -> bool:
    """Return whether an error only reports that another rank did not come in time."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LATE)


def wait_for_reason() -> bool:
    """Wait for a lost rank to have reported its failure; return whether it did."""
    end = time.monotonic() + GRACE
    while _store is not None and time.monotonic() < end:
        try:
            if _store.check([FAILED]):
                return True
        except RuntimeError:
            return False
        time.sleep(0.2)
    return False
