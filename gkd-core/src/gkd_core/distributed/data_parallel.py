"""Data parallelism: each rank has a share of the rows, and gradients are summed over the ranks.

Ranks that share a copy of the student see the same rows. Sums are taken over the ranks that hold
the same shard of different copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_core.distributed import messages
from gkd_core.distributed.groups import data_group, data_rank, data_size

Item = TypeVar("Item")
Key = TypeVar("Key", bound=str)

JOINED = 2**22
"""Gradient elements in a bucket that is reduced at once; a larger gradient goes by itself."""


def share(rows: Sequence[int]) -> tuple[Sequence[int], bool]:
    """Return this rank's rows of a micro-batch, and whether they count.

    If there are fewer rows than ranks, some ranks repeat a row that does not count: every rank must
    take part in every collective.
    """
    if data_size() == 1:
        return rows, True
    own = rows[data_rank() :: data_size()]
    return (own, True) if own else (rows[:1], False)


def deal(items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield this rank's share of items, and whether each counts; all ranks get equally many."""
    size = data_size()
    for start in range(0, len(items), size):
        place = start + data_rank()
        yield (items[place], True) if place < len(items) else (items[start], False)


def collect(results: Sequence[Item]) -> list[Item]:
    """Return the results of all ranks, in the order of the items given to `deal`.

    Args:
        results: This rank's results, for the items that count: what `messages.gather` takes.
    """
    if data_size() == 1:
        return list(results)
    shares = messages.gather([(result,) for result in results], data_group())
    rounds = zip_longest(*shares)
    return [held[0] for dealt in rounds for held in dealt if held is not None]


def sum_over_ranks(values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Return tensors summed over the ranks that divide the rows.

    Every rank of the data-parallel group must call it, with the same keys in the same order.

    Args:
        values: Tensors of one shape, dtype and device, such as the sums of a metric; without
            gradient.
    """
    if data_size() == 1 or not values:
        return dict(values)
    total = torch.stack(list(values.values()))
    dist.all_reduce(total, group=data_group())
    return dict(zip(values, total.unbind(), strict=True))


def add_counts(counts: Mapping[Key, int]) -> dict[Key, int]:
    """Return integers summed over the data group."""
    if data_size() == 1:
        return dict(counts)
    total = torch.tensor(list(counts.values()))
    dist.all_reduce(total, group=data_group())
    return dict(zip(counts, total.tolist(), strict=True))


def any_of(facts: Iterable[bool]) -> list[bool]:
    """Return, for each fact, whether it holds on at least one rank."""
    every = list(facts)
    if data_size() == 1 or not every:
        return every
    found = torch.tensor(every, dtype=torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=data_group())
    return found.bool().tolist()


def max_over_ranks(values: Iterable[int]) -> list[int]:
    """Return, for each integer, the largest on any rank."""
    every = list(values)
    if data_size() == 1 or not every:
        return every
    found = torch.tensor(every)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=data_group())
    return found.tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum gradients over the ranks. A weight that no rank used keeps no gradient."""
    if data_size() == 1:
        return
    every = list(parameters)
    used = any_of(parameter.grad is not None for parameter in every)
    gradients = [_gradient(p) for p, anywhere in zip(every, used, strict=True) if anywhere]
    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0], group=data_group())  # in place: spares an embedding a copy
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat, group=data_group())
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:  # used on other ranks only, but all must reduce the same tensors
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
