"""The bytes that a rank sends in a collective operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._pytree import tree_leaves

SHARES: Mapping[str, Callable[[int], float]] = {
    "allreduce_": lambda ranks: 2 * (ranks - 1) / ranks,
    "allgather_": lambda ranks: (ranks - 1) / ranks,
    "_allgather_base_": lambda ranks: (ranks - 1) / ranks,
    "allgather_into_tensor_coalesced_": lambda ranks: (ranks - 1) / ranks,
    "_reduce_scatter_base_": lambda ranks: ranks - 1,
    "reduce_scatter_": lambda ranks: ranks - 1,
    "alltoall_base_": lambda ranks: (ranks - 1) / ranks,
}
"""Bytes that a rank sends in a ring algorithm, relative to the first argument, the result."""


def sent_bytes(name: str, size: int, ranks: int) -> int:
    """Return the bytes that a rank sends.

    Args:
        name: An operation of `torch.ops.c10d`; an unknown one is assumed to send everything once.
        size: Bytes of its first argument.
        ranks: Ranks that take part.
    """
    share = SHARES[name](ranks) if name in SHARES else 1.0
    return round(size * share)


def involved(arguments: Any) -> tuple[int, int]:
    """Return the size in bytes of an operation's first argument, and its number of ranks."""
    tensors = [leaf for leaf in tree_leaves(arguments[0]) if isinstance(leaf, Tensor)]
    size = sum(tensor.nbytes for tensor in tensors)
    return size, next((_size(a) for a in arguments if _is_group(a)), 1)


def _is_group(argument: Any) -> bool:
    if not isinstance(argument, torch.ScriptObject):
        return False
    return "ProcessGroup" in str(argument._type())


def _size(group: Any) -> int:
    found: ProcessGroup = ProcessGroup.unbox(group)
    return found.size()
