"""The samples of a micro-batch whose rows are divided over the ranks.

For methods whose loss of a sample depends on the other samples, of which a rank sees only a part.
Every rank must call these functions, in the same order.
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
        values: The gathered tensor, `[N, ...]`.
        counts: False for rows that only keep a rank in step with the others, bool `[N]`.
        own: Position of this rank's rows.
        number: Number of rows that count.
    """

    values: Tensor
    counts: Tensor
    own: slice
    number: int


def all_samples(values: Tensor, batch: Batch) -> AllSamples:
    """Gather one tensor per sample from the ranks that divide a micro-batch.

    Gradients with respect to the rows of another rank flow back to it: summed over the ranks, the
    gradients of each rank's losses of its own samples equal those of a single process.

    Args:
        values: Values of this rank's samples, `[B, ...]`; only B may differ between ranks.
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
    """Return the sum over the samples of all ranks that divide a micro-batch, without gradient.

    Args:
        values: Values of this rank's samples, `[B, ...]`.
        batch: The micro-batch; it adds 0 if it does not count.
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
    own = torch.tensor([len(batch), len(batch) * batch.counted])  # on the CPU: it is read at once
    found = [torch.empty_like(own) for _ in range(data_size())]
    dist.all_gather(found, own, group=data_group())
    sizes, counted = torch.stack(found).unbind(1)
    return sizes.tolist(), counted.tolist()


def _join(values: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all ranks, `[N, ...]`."""
    # all_gather needs equal shapes: smaller parts are padded with rows that are dropped again.
    missing = max(sizes) - len(values)
    padded = functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing)).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=data_group())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
