"""Differentiable collectives within a tensor group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup, ReduceOp


def sum_gradient(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Return a replicated tensor unchanged; its gradient is summed over the ranks.

    Args:
        tensor: Equal on all ranks, each of which continues with a part of the work on it.
        group: The ranks.
    """
    summed: Tensor = _SumGradient.apply(tensor, group)  # type: ignore[no-untyped-call]
    return summed


def gather(tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """Return the shards of all ranks concatenated along a dimension.

    Every rank must continue with the same work on the result: its gradient is then equal
    everywhere, and each rank keeps that of its own shard.

    Args:
        tensor: This rank's shard, of the same shape on all ranks.
        dim: Dimension to concatenate along.
        group: The ranks.
    """
    gathered: Tensor = _Gather.apply(tensor, dim, group)  # type: ignore[no-untyped-call]
    return gathered


def shard(tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """Return this rank's shard of a replicated tensor.

    The backward pass gathers the gradient, so that it is complete on every rank. After a `gather`,
    all ranks do the same work on the whole tensor in between.

    Args:
        tensor: Equal on all ranks; its size along `dim` is a multiple of the number of ranks.
        dim: Dimension to divide.
        group: The ranks.
    """
    share: Tensor = _Shard.apply(tensor, dim, group)  # type: ignore[no-untyped-call]
    return share


def all_reduce(
    tensor: Tensor, group: ProcessGroup, operation: ReduceOp.RedOpType = ReduceOp.SUM
) -> Tensor:
    """Return the sum of a tensor over the ranks, or the result of another reduction."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, operation, group)
    return total


class _SumGradient(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)  # autograd treats a returned input specially

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _joined(tensor, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _own(gradient, ctx.dim, ctx.group), None, None


class _Shard(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own(tensor, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _joined(gradient, ctx.dim, ctx.group), None, None


def _joined(share: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    share = share.contiguous()
    shares = [torch.empty_like(share) for _ in range(group.size())]
    dist.all_gather(shares, share, group=group)
    return torch.cat(shares, dim)


def _own(whole: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    return whole.chunk(group.size(), dim)[group.rank()].contiguous()
