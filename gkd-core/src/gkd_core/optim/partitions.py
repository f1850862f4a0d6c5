"""`PartitionedCopies`: whole weights out of the flat partitions of ZeRO 1 and 2.

DeepSpeed lays the weights of a group out in one vector and gives each copy of the student an equal
part. Most weights lie in one part, and the copy that has it updates them in place. A weight across
a boundary is updated by the copy that has its beginning, which is sent the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gkd_core.distributed.groups import data_group, data_rank
from gkd_core.optim.groups import Group
from gkd_core.optim.whole import Held


@dataclass(frozen=True)
class Span:
    """The place of a weight in the vector of its group.

    Attributes:
        weight: The weight.
        start: Index of its first element.
        size: Number of elements of a part.
    """

    weight: nn.Parameter
    start: int
    size: int

    @property
    def owner(self) -> int:
        """The copy whose part has the beginning of the weight."""
        return self.start // self.size

    @property
    def others(self) -> range:
        """The copies whose parts have the rest."""
        return range(self.owner + 1, (self.start + self.weight.numel() - 1) // self.size + 1)

    def within(self, part: Tensor, copy: int) -> Tensor:
        """Return the part's share of the weight.

        Args:
            part: The part.
            copy: Index of the copy that has it.
        """
        first = max(self.start - copy * self.size, 0)
        last = min(self.start + self.weight.numel() - copy * self.size, self.size)
        return part[first:last]

    def pieces(self, whole: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield what each other copy has of a whole tensor of the weight's size."""
        flat = whole.view(-1)
        for copy in self.others:
            first = copy * self.size - self.start
            yield copy, flat[first : first + self.size]


class PartitionedCopies:
    """Copies of the student of which each updates a part of the weights.

    Args:
        groups: The weights.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = [list(group["params"]) for group in groups]
        self._parts: Sequence[Tensor] = []
        self._spans: list[list[Span]] = []
        self._owners: dict[nn.Parameter, int] = {}
        self._joined: dict[nn.Parameter, Tensor] = {}

    def attach(self, parts: Sequence[Tensor]) -> None:
        """Take over this copy's parts, one of each group, when they are made."""
        self._parts = parts
        for weights, part in zip(self._groups, self._parts, strict=True):
            self._spans.append(list(_spans(weights, part.numel())))
        self._owners = {span.weight: span.owner for spans in self._spans for span in spans}

    def owner(self, weight: nn.Parameter) -> int:
        """Return the index of the copy that updates a weight."""
        return self._owners[weight]

    def updates(self, weight: nn.Parameter) -> bool:
        """Return whether this copy updates a weight."""
        return self._owners[weight] == data_rank()

    def open(self, number: int) -> Iterable[Held]:
        """Return the weights of a group that this copy updates, with what others have of them."""
        part, own = self._parts[number], data_rank()
        gradient = part.grad
        assert gradient is not None, "DeepSpeed sets it before each step"
        held = []
        for span in self._spans[number]:
            joined = [_join(span, tensor, own) for tensor in (part.data, gradient)]
            if span.owner == own:
                value, grad = (tensor.view(span.weight.shape) for tensor in joined)
                held.append(Held(span.weight, value, grad))
                if span.others:
                    self._joined[span.weight] = value
        return held

    def close(self, number: int) -> None:
        """Send what was updated for others back to them."""
        part, own = self._parts[number].data, data_rank()
        for span in self._spans[number]:
            if own in span.others:
                piece = torch.empty_like(span.within(part, own))
                dist.recv(piece, group=data_group(), group_src=span.owner)
                span.within(part, own).copy_(piece)
            elif own == span.owner and span.others:
                whole = self._joined.pop(span.weight)
                begin = span.within(part, own)
                begin.copy_(whole.view(-1)[: begin.numel()])
                for copy, piece in span.pieces(whole):
                    dist.send(piece.contiguous(), group=data_group(), group_dst=copy)


def _join(span: Span, part: Tensor, own: int) -> Tensor:
    """Return a whole tensor on the copy that updates its weight; what is here on others.

    Args:
        span: The place of the weight.
        part: This copy's part of all such tensors.
        own: Index of this copy.
    """
    if own in span.others:
        dist.send(span.within(part, own).contiguous(), group=data_group(), group_dst=span.owner)
    if own != span.owner or not span.others:
        return span.within(part, own) if own == span.owner else part[:0]
    whole = part.new_empty(span.weight.numel())
    begin = span.within(part, own)
    whole[: begin.numel()] = begin
    for copy, piece in span.pieces(whole):
        received = torch.empty_like(piece)
        dist.recv(received, group=data_group(), group_src=copy)
        piece.copy_(received)
    return whole


def _spans(weights: Iterable[nn.Parameter], size: int) -> Iterator[Span]:
    start = 0
    for weight in weights:
        yield Span(weight, start, size)
        start += weight.numel()
