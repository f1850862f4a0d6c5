"""Communication inside a tensor group that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup


def sum_gradient(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Return a tensor that all ranks have; its gradient is summed over them.

    Args:
        tensor: Equal on all ranks, each of which goes on with a part of the work on it.
        group: The ranks.
    """
    summed: Tensor = _SumGradient.apply(tensor, group)  # type: ignore[no-untyped-call]
    return summed


def gather(tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """Return the shards of all ranks joined along a dimension.

    Every rank must go on with the same work on the result: its gradient is then equal everywhere,
    and a rank keeps that of its own shard.

    Args:
        tensor: This rank's shard, of one shape on all ranks.
        dim: Dimension to join along.
        group: The ranks.
    """
    gathered: Tensor = _Gather.apply(tensor, dim, group)  # type: ignore[no-untyped-call]
    return gathered


def all_reduce(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _SumGradient(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        shards = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(shards, tensor.contiguous(), group=group)
        return torch.cat(shards, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        own = gradient.chunk(ctx.group.size(), ctx.dim)[ctx.group.rank()]
        return own.contiguous(), None, None
