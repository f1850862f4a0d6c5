"""Data parallelism: each rank has a share of the rows, and gradients are summed over the ranks.

Ranks that share a copy of the student see the same rows. What is summed here is summed over ranks
that have the same shard of different copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_core.distributed.groups import data_group, data_rank, data_size

Item = TypeVar("Item")
Key = TypeVar("Key", bound=str)

JOINED = 2**22
"""Elements of gradients that are joined for one communication; a larger one goes by itself."""


def share(rows: Sequence[int]) -> tuple[Sequence[int], bool]:
    """Return this rank's rows of a micro-batch, and whether they count.

    Where there are fewer rows than ranks, some ranks repeat one that does not count: all must take
    part in every communication.
    """
    if data_size() == 1:
        return rows, True
    own = rows[data_rank() :: data_size()]
    return (own, True) if own else (rows[:1], False)


def deal(items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield this rank's share of some work, each with whether it counts; all ranks get as many."""
    size = data_size()
    for start in range(0, len(items), size):
        place = start + data_rank()
        yield (items[place], True) if place < len(items) else (items[start], False)


def collect(results: Sequence[Item]) -> list[Item]:
    """Return the results of all ranks, in the order of the items that `deal` dealt.

    Args:
        results: This rank's, of the items that count.
    """
    if data_size() == 1:
        return list(results)
    shares: list[list[tuple[Item]]] = [[] for _ in range(data_size())]
    dist.all_gather_object(shares, [(result,) for result in results], group=data_group())
    rounds = zip_longest(*shares)
    return [held[0] for dealt in rounds for held in dealt if held is not None]


def sum_over_ranks(values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Return scalars summed over the shares."""
    if data_size() == 1 or not values:
        return dict(values)
    total = torch.stack(list(values.values()))
    dist.all_reduce(total, group=data_group())
    return dict(zip(values, total.unbind(), strict=True))


def add_counts(counts: Mapping[Key, int]) -> dict[Key, int]:
    """Return numbers summed over the shares."""
    if data_size() == 1:
        return dict(counts)
    total = torch.tensor(list(counts.values()))
    dist.all_reduce(total, group=data_group())
    return dict(zip(counts, total.tolist(), strict=True))


def any_of(facts: Iterable[bool]) -> list[bool]:
    """Return which of some facts hold on a rank at least."""
    every = list(facts)
    if data_size() == 1 or not every:
        return every
    found = torch.tensor(every, dtype=torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=data_group())
    return found.bool().tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum gradients over the ranks. A weight that no rank used is left without."""
    if data_size() == 1:
        return
    every = list(parameters)
    used = any_of(parameter.grad is not None for parameter in every)
    gradients = [_gradient(p) for p, anywhere in zip(every, used, strict=True) if anywhere]
    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0], group=data_group())  # an embedding's need not be copied
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat, group=data_group())
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = bucket and sum(t.numel() for t in bucket) + tensor.numel() > JOINED
        if full or (bucket and bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
