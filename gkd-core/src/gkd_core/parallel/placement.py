"""Placement of a teacher's weights between uses.

A frozen model needs its weights only while it runs, one block after another. They are kept in host
memory, or partitioned over the ranks as in ZeRO-3, and a block is whole only during its forward
pass. The next block is prefetched meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from transformers import PreTrainedModel

from gkd_core.config.schema import Placement


class Source(Protocol):
    """Storage of a unit's weights, concatenated in one tensor."""

    def start(self) -> None:
        """Start fetching the weights."""

    def finish(self) -> Tensor:
        """Wait for the weights, and return them on the device."""


class HostMemory:
    """Weights in host memory."""

    def __init__(self, weights: Tensor, device: torch.device) -> None:
        self._device = device
        self._weights = weights.cpu()
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._weights = self._weights.pin_memory()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._fetched: Tensor | None = None

    def start(self) -> None:
        """Start copying the weights, overlapped with computation on the device."""
        with torch.cuda.stream(self._stream):
            self._fetched = self._weights.to(self._device, non_blocking=True, copy=True)

    def finish(self) -> Tensor:
        """Return the copy."""
        fetched, self._fetched = self._fetched, None
        assert fetched is not None, "started before"
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            # The memory belongs to the copy stream: it must not be reused before this one is done.
            fetched.record_stream(current)
        return fetched


class Shards:
    """Weights of which each rank of a group holds an equal part."""

    def __init__(self, weights: Tensor, device: torch.device, group: ProcessGroup) -> None:
        self._group = group
        self._size = weights.numel()
        part = -(-self._size // group.size())
        padded = functional.pad(weights, (0, part * group.size() - self._size))
        self._own = padded[group.rank() * part :][:part].clone().to(device)
        self._fetched: tuple[Tensor, Any] | None = None

    def start(self) -> None:
        """Start gathering the parts."""
        whole = self._own.new_empty(self._own.numel() * self._group.size())
        parts = list(torch.split(whole, self._own.numel()))
        self._fetched = whole, dist.all_gather(parts, self._own, self._group, async_op=True)

    def finish(self) -> Tensor:
        """Return the concatenated parts."""
        assert self._fetched is not None, "started before"
        (whole, work), self._fetched = self._fetched, None
        work.wait()
        return whole[: self._size]


class Unit:
    """Weights that are fetched and released together.

    Attributes:
        after: The unit that is used after this one, if known.
    """

    def __init__(self, weights: Sequence[nn.Parameter], source: Source) -> None:
        self._weights = weights
        self._shapes = [weight.shape for weight in weights]
        self._source = source
        self._started = False
        self.after: Unit | None = None
        self.release()

    def prefetch(self) -> None:
        """Start fetching the weights."""
        if not self._started:
            self._source.start()
            self._started = True

    def fetch(self) -> None:
        """Make the weights whole."""
        self.prefetch()
        whole = self._source.finish()
        self._started = False
        sizes = [shape.numel() for shape in self._shapes]
        parts = torch.split(whole, sizes)
        for weight, shape, part in zip(self._weights, self._shapes, parts, strict=True):
            weight.data = part.view(shape)
        if self.after is not None:
            self.after.prefetch()

    def release(self) -> None:
        """Release the weights."""
        for weight in self._weights:
            weight.data = weight.data.new_empty(0)


def place_teacher(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    placement: Placement,
    device: torch.device,
    copies: ProcessGroup | None = None,
) -> None:
    """Move the weights of a frozen model to where they are kept between uses.

    The embeddings, the head and each block are fetched when they run. The few other weights stay on
    the device.

    Args:
        model: The model, without gradients.
        blocks: Its transformer blocks, in order.
        placement: Where the weights are kept.
        device: Where the model runs.
        copies: The ranks that hold the same weights, if not all ranks.
    """
    if placement == "replicated" or (placement == "zero3" and _size(copies) == 1):
        model.to(device)
        return

    group = copies or dist.group.WORLD

    def make_unit(weights: Sequence[nn.Parameter], owners: Iterable[nn.Module]) -> Unit:
        flat = torch.cat([weight.data.flatten() for weight in weights])
        if placement == "offload":
            return _attach(Unit(weights, HostMemory(flat, device)), owners)
        assert group is not None, "ranks that divide weights have met"
        return _attach(Unit(weights, Shards(flat, device, group)), owners)

    waiting: set[nn.Parameter] = set()
    before: Unit | None = None
    for table in _tables(model):
        owners = [
            m for m in model.modules() if any(w is table for w in vars(m)["_parameters"].values())
        ]
        make_unit([table], owners)
        waiting.add(table)
    for block in blocks:
        unit = make_unit(list(block.parameters()), [block])
        waiting.update(block.parameters())
        if before is not None:
            before.after = unit
        before = unit
    for rest in (*model.buffers(), *(w for w in model.parameters() if w not in waiting)):
        rest.data = rest.data.to(device)


def _tables(model: PreTrainedModel) -> Iterable[nn.Parameter]:
    """Return the vocabulary-sized matrices, a tied one once."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return dict.fromkeys(m.weight for m in modules if m is not None)


def _size(copies: ProcessGroup | None) -> int:
    return dist.get_world_size(copies) if dist.is_initialized() else 1


def _attach(unit: Unit, owners: Iterable[nn.Module]) -> Unit:
    """Register hooks by which modules fetch a unit's weights before they run."""
    for owner in owners:
        owner.register_forward_pre_hook(lambda *_: unit.fetch())
        # A pass may stop inside a block, as soon as everything is captured.
        owner.register_forward_hook(lambda *_: unit.release(), always_call=True)
    return unit
