"""Values that ranks send each other."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from gkd_core.distributed.packing import pack, unpack

Value = TypeVar("Value")


def broadcast(value: Value) -> Value:
    """Return the value of the first rank. Every rank must call it.

    Args:
        value: What `pack` takes; only that of rank 0 is used.
    """
    own = _bytes(value) if dist.get_rank() == 0 else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor(len(own))
    dist.broadcast(size, src=0)
    sent = own if dist.get_rank() == 0 else own.new_empty(int(size))
    dist.broadcast(sent, src=0)
    if dist.get_rank() == 0:
        return value
    found: Value = unpack(_content(sent))
    return found


def gather(value: Value, group: ProcessGroup | None) -> list[Value]:
    """Return the values of all ranks of a group, in their order. Every rank of it must call it.

    Args:
        value: What `pack` takes.
        group: The ranks; None stands for all.
    """
    own, ranks = _bytes(value), dist.get_world_size(group)
    sizes = [torch.tensor(0) for _ in range(ranks)]
    dist.all_gather(sizes, torch.tensor(len(own)), group=group)
    longest = int(max(sizes))
    sent = [own.new_empty(longest) for _ in range(ranks)]
    padded = torch.cat([own, own.new_zeros(longest - len(own))])
    dist.all_gather(sent, padded, group=group)
    return [unpack(_content(each[:size])) for each, size in zip(sent, sizes, strict=True)]


def _bytes(value: object) -> Tensor:
    """Return a value as a tensor, uint8 `[N]`."""
    return torch.frombuffer(bytearray(pack(value)), dtype=torch.uint8)


def _content(sent: Tensor) -> bytes:
    return sent.numpy().tobytes()
