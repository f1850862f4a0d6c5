"""`FeatureOffload`: host memory for GPU tensors until they are needed again.

Teachers run sequentially, but their captured tensors would otherwise all stay on the GPU until the
backward pass is over. With it, only one teacher at a time has its tensors on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import Capture

LEAST = 2**16
"""Bytes below which a tensor saved for backward stays on the device: a copy's latency dominates."""


class FeatureOffload:
    """Moves tensors of a device to host memory and back.

    The copies do not block: they are ordered with the work of the device's current stream.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._homes: WeakKeyDictionary[UntypedStorage, Tensor] = WeakKeyDictionary()

    def leave(self, tensor: Tensor) -> Tensor:
        """Return a copy in host memory."""
        copy = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
        return copy.copy_(tensor, non_blocking=True)

    def fetch(self, waiting: Tensor) -> Tensor:
        """Return a copy on the device of a tensor returned by `leave`."""
        copy = waiting.to(self.device, non_blocking=True, copy=True)
        self._homes[copy.untyped_storage()] = waiting
        return copy

    def offload(self, features: Features) -> OffloadedFeatures:
        """Move the captured tensors of a pass to host memory; the caller drops its references."""
        return OffloadedFeatures(features, self)

    def saving(self, stays: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Return a context that keeps tensors saved for backward in host memory.

        Args:
            stays: Tensors that are on the device anyway; they and their views stay there.
        """
        known = WeakSet(tensor.untyped_storage() for tensor in stays)

        def pack(tensor: Tensor) -> Tensor | _Saved:
            size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
            expanded = size > storage.nbytes()  # its copy would take more memory
            elsewhere = tensor.device.type != self.device.type
            if size < LEAST or expanded or elsewhere or storage in known:
                return tensor
            home = self._homes.get(storage)
            if home is None or _layout(home) != _layout(tensor):
                home = self.leave(tensor)
            return _Saved(home)

        def unpack(saved: Tensor | _Saved) -> Tensor:
            return self.fetch(saved.waiting) if isinstance(saved, _Saved) else saved

        return saved_tensors_hooks(pack, unpack)


class OffloadedFeatures:
    """Captured tensors of a pass, in host memory."""

    def __init__(self, features: Features, offload: FeatureOffload) -> None:
        self._offload = offload
        self._features = features.moved(_once(offload.leave))

    def fetch(self, captures: Container[Capture]) -> Features:
        """Return the given captures, on the device."""
        return self._features.moved(_once(self._offload.fetch), captures)


class _Saved(NamedTuple):
    waiting: Tensor


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _once(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that moves a tensor once: layers may share one, such as a mask."""
    done: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = move(tensor)
        return done[id(tensor)]

    return moved
