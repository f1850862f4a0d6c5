"""The division of a tensor, and of a model, over the ranks of a tensor group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup


class Sliceable(Protocol):
    """A tensor, or a tensor in a file from which slices can be read."""

    def __getitem__(self, index: Any) -> Tensor:
        """Return a slice."""


@dataclass(frozen=True)
class ShardSpec:
    """The division of a tensor by rows or by columns.

    A size that does not divide evenly is rounded up: the last ranks have rows of zeros, which
    correspond to no row of the whole tensor. Only the vocabulary is divided unevenly.

    Attributes:
        shape: Shape of the whole tensor, as transformers stores it.
        dim: Dimension that is divided.
        ranks: Number of ranks.
        parts: Number of equal tensors fused along `dim`; each is divided by itself.
        transposed: Whether shards are stored transposed (`Conv1D` stores a matrix as inputs by
            outputs, a linear layer as outputs by inputs).
    """

    shape: tuple[int, ...]
    dim: int
    ranks: int
    parts: int = 1
    transposed: bool = False

    @property
    def size(self) -> int:
        """Rows (or columns) of one part on each rank, including padding."""
        return -(-self.shape[self.dim] // self.parts // self.ranks)

    @property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of a shard."""
        shape = list(self.shape)
        shape[self.dim] = self.parts * self.size
        return tuple(reversed(shape) if self.transposed else shape)

    def shard(self, whole: Tensor, rank: int) -> Tensor:
        """Return a rank's shard of a tensor, in its own memory."""
        shard = torch.zeros(self.shard_shape, dtype=whole.dtype, device=whole.device)
        if not whole.is_meta:
            self.read(whole, rank, shard)
        return shard

    def read(self, whole: Sliceable, rank: int, shard: Tensor) -> None:
        """Copy a rank's share of a tensor into its shard.

        Args:
            whole: The tensor to read from; only the share is read.
            rank: The rank.
            shard: The target; padding is left as it is.
        """
        for target, start, stop in self._pieces(shard, rank):
            target.copy_(whole[self._index(start, stop)])

    def write(self, shard: Tensor, rank: int, whole: Tensor) -> None:
        """Copy a rank's shard to its position in the whole tensor."""
        for source, start, stop in self._pieces(shard, rank):
            whole[self._index(start, stop)] = source

    def _pieces(self, shard: Tensor, rank: int) -> Iterator[tuple[Tensor, int, int]]:
        """Yield pieces of a shard, each with its first and last index in the whole tensor."""
        laid = shard.t() if self.transposed else shard
        width = self.shape[self.dim] // self.parts
        for part in range(self.parts):
            start = min(rank * self.size, width)
            length = min(self.size, width - start)
            if length > 0:
                begin = part * width + start
                yield laid.narrow(self.dim, part * self.size, length), begin, begin + length

    def _index(self, start: int, stop: int) -> tuple[slice, ...]:
        return (slice(None),) * self.dim + (slice(start, stop),)


@dataclass(frozen=True)
class Sharding:
    """The division of a model.

    Attributes:
        group: The tensor group.
        splits: The division of each divided weight, by its name in the model; a tied weight is
            listed under every name.
        summed: Names of the replicated weights of which each rank has a partial gradient.
    """

    group: ProcessGroup
    splits: Mapping[str, ShardSpec]
    summed: frozenset[str]

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """Return this rank's shard of a weight."""
        split = self.splits.get(name)
        return whole if split is None else split.shard(whole, self.group.rank())

    def read(self, name: str, whole: Sliceable, own: Tensor) -> None:
        """Copy this rank's shard out of a whole weight, reading nothing else."""
        split = self.splits.get(name)
        if split is None:
            own.copy_(whole[...])
        else:
            own.zero_()  # padding stays zero
            split.read(whole, self.group.rank(), own)

    def gather(self, name: str, own: Tensor, keeper: int = 0) -> Tensor | None:
        """Return a whole weight on one rank of the group, and None on the others.

        All ranks of the group call this.

        Args:
            name: Name of the weight.
            own: This rank's shard.
            keeper: The rank of the group that is to have it.
        """
        here = self.group.rank() == keeper
        split = self.splits.get(name)
        if split is None:
            return own if here else None
        shards = [torch.empty_like(own) for _ in range(split.ranks)] if here else None
        dist.gather(own.contiguous(), shards, group=self.group, group_dst=keeper)
        if shards is None:
            return None
        whole = own.new_empty(split.shape)
        for rank, shard in enumerate(shards):
            split.write(shard, rank, whole)
        return whole

    def scatter(self, name: str, whole: Tensor | None, own: Tensor, keeper: int) -> None:
        """Copy a whole divided weight, which one rank of the group has, into the ranks' shards.

        All ranks of the group call this.

        Args:
            name: Name of the weight.
            whole: The weight; None on the other ranks.
            own: This rank's shard, which is overwritten.
            keeper: The rank of the group that has the weight.
        """
        split = self.splits[name]
        shards = whole if whole is None else [split.shard(whole, r) for r in range(split.ranks)]
        received = torch.empty_like(own)
        dist.scatter(received, shards, group=self.group, group_src=keeper)
        own.copy_(received)


class Division:
    """The division of trained weights over a tensor group, for tensors of the same shapes.

    Args:
        models: The trained models; at most one is divided.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._sharding: Sharding | None = None
        self._names: dict[Tensor, str] = {}
        for model in models:
            sharding = sharding_of(model)
            if sharding is not None:
                self._sharding = sharding
                named = model.named_parameters()
                self._names = {weight: n for n, weight in named if n in sharding.splits}

    @property
    def ranks(self) -> int:
        """Number of ranks that the weights are divided over."""
        return 1 if self._sharding is None else self._sharding.group.size()

    @property
    def rank(self) -> int:
        """Index of this rank among them."""
        return 0 if self._sharding is None else self._sharding.group.rank()

    def divides(self, weight: Tensor) -> bool:
        """Return whether each rank has only a shard of a weight."""
        return weight in self._names

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of a whole weight."""
        if self._sharding is None or weight not in self._names:
            return tuple(weight.shape)
        return self._sharding.splits[self._names[weight]].shape

    def collect(self, weight: Tensor, own: Tensor, keeper: int) -> Tensor | None:
        """Return a whole tensor on rank `keeper` of the group, and None on the others.

        Args:
            weight: The divided weight that the tensor has the shape of.
            own: This rank's shard of the tensor.
            keeper: Index of the rank.
        """
        assert self._sharding is not None, "only a divided weight is collected"
        return self._sharding.gather(self._names[weight], own, keeper)

    def distribute(self, weight: Tensor, whole: Tensor | None, own: Tensor, keeper: int) -> None:
        """Overwrite the shards of a tensor, which rank `keeper` has whole.

        Args:
            weight: The divided weight that the tensor has the shape of.
            whole: The tensor; None on the other ranks.
            own: This rank's shard.
            keeper: Index of the rank.
        """
        assert self._sharding is not None, "only a divided weight is distributed"
        self._sharding.scatter(self._names[weight], whole, own, keeper)

    def gather(self, weight: Tensor, own: Tensor) -> Tensor | None:
        """Return a whole tensor on the first rank of the group, gathered from the shards.

        Args:
            weight: The weight that the tensor has the shape of.
            own: This rank's shard of the tensor.
        """
        if self._sharding is None:
            return own
        return self._sharding.gather(self._names.get(weight, ""), own)

    def shard(self, weight: Tensor, whole: Sliceable) -> Tensor:
        """Return this rank's shard of a tensor that has the shape of a whole weight, fp32."""
        if self._sharding is None or weight not in self._names:
            return whole[...]
        split = self._sharding.splits[self._names[weight]]
        own = torch.zeros(split.shard_shape, device=weight.device)
        split.read(whole, self._sharding.group.rank(), own)
        return own

    def gradient_norm(self, weights: Iterable[Tensor], device: torch.device) -> Tensor:
        """Return the gradient norm over the whole weights, on their device; 0 without gradients."""
        every = list(weights)
        common = _norm((weight for weight in every if weight not in self._names), device)
        if self._sharding is None:
            return common
        square = _norm((weight for weight in every if weight in self._names), device).square()
        dist.all_reduce(square, group=self._sharding.group)
        return (square + common.square()).sqrt()


def sharding_of(model: nn.Module) -> Sharding | None:
    """Return the division of a model; None if it is whole."""
    return getattr(model, "sharding", None)


def _norm(weights: Iterable[Tensor], device: torch.device) -> Tensor:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)


def weights_of(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return the tensors of a state dict, each once, with all names of a tied one."""
    found: dict[Tensor, list[str]] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        found.setdefault(weight, []).append(name)
    return [(names, weight) for weight, names in found.items()]
