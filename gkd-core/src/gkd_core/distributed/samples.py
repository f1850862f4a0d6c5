"""The samples of a micro-batch whose rows the ranks share.

For methods whose loss of a sample depends on the others: what a rank sees is a part of them. Every
rank must call these functions, in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from gkd_core.contract.batch import Batch
from gkd_core.distributed.groups import data_group, data_rank, data_size


class AllSamples(NamedTuple):
    """The samples of all ranks' micro-batches: N rows.

    Attributes:
        values: What was gathered, `[N, ...]`.
        counts: False for rows that only keep a rank in step with the others, bool `[N]`.
        own: Where the rows of this rank are.
        number: How many rows count.
    """

    values: Tensor
    counts: Tensor
    own: slice
    number: int


def all_samples(values: Tensor, batch: Batch) -> AllSamples:
    """Gather one tensor per sample from the ranks that share a micro-batch.

    A gradient with respect to the rows of another rank flows back to it: summed over the ranks, the
    gradients of the losses of each rank's own samples are those of a single process.

    Args:
        values: Of this rank's samples, `[B, ...]`; of equal shape on all ranks but for B.
        batch: The micro-batch.
    """
    rows = len(values)
    if data_size() == 1:
        counts = torch.ones(rows, dtype=torch.bool, device=values.device)
        return AllSamples(values, counts, slice(0, rows), rows)
    sizes, counted = _sizes(batch)
    start = sum(sizes[: data_rank()])
    gathered: Tensor = _GatherRows.apply(values, sizes)  # type: ignore[no-untyped-call]
    parts = [torch.full((n,), c > 0) for n, c in zip(sizes, counted, strict=True)]
    counts = torch.cat(parts).to(values.device)
    return AllSamples(gathered, counts, slice(start, start + rows), sum(counted))


def sum_samples(values: Tensor, batch: Batch) -> Tensor:
    """Return the sum over the samples of all ranks that share a micro-batch, without gradient.

    Args:
        values: Of this rank's samples, `[B, ...]`.
        batch: The micro-batch; 0 is added if it does not count.
    """
    total = values.detach().sum(0) * batch.counted
    if data_size() > 1:
        dist.all_reduce(total, group=data_group())
    return total


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _join(values, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=data_group())
        return torch.split(total, ctx.sizes)[data_rank()], None


def _sizes(batch: Batch) -> tuple[list[int], list[int]]:
    """Return the number of samples of each rank, and how many of them count."""
    own = torch.tensor([len(batch), len(batch) * batch.counted])  # on the CPU: read at once
    found = [torch.empty_like(own) for _ in range(data_size())]
    dist.all_gather(found, own, group=data_group())
    sizes, counted = torch.stack(found).unbind(1)
    return sizes.tolist(), counted.tolist()


def _join(values: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all ranks, `[N, ...]`."""
    # Communication wants equal shapes: rows are added to the smaller parts and dropped again.
    missing = max(sizes) - len(values)
    padded = functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing)).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=data_group())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
