"""`FeatureOffload`: host memory in which tensors of a GPU wait until they are needed again.

Teachers run sequentially, but their captured tensors would otherwise all stay on the GPU until the
backward pass is over. Here only one teacher at a time has its tensors on the device.
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
"""Bytes below which a tensor that is saved for backward stays: copying it takes longer to start."""


class FeatureOffload:
    """Takes tensors of a device, and gives them back.

    Nothing waits for the copies: they are in the order of the work of the device's current stream.

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
        """Return a copy on the device of what `leave` returned."""
        copy = waiting.to(self.device, non_blocking=True, copy=True)
        self._homes[copy.untyped_storage()] = waiting
        return copy

    def offload(self, features: Features) -> OffloadedFeatures:
        """Take what was captured in a pass; the caller lets go of it."""
        return OffloadedFeatures(features, self)

    def saving(self, stays: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Return a context; what is saved for backward inside of it waits here.

        Args:
            stays: What is on the device anyway, and is not taken; nor are views of it.
        """
        known = WeakSet(tensor.untyped_storage() for tensor in stays)

        def pack(tensor: Tensor) -> Tensor | _Saved:
            size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
            expanded = size > storage.nbytes()  # its copy would take more
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
    """What was captured in a pass, in host memory."""

    def __init__(self, features: Features, offload: FeatureOffload) -> None:
        self._offload = offload
        self._features = features.moved(_once(offload.leave))

    def fetch(self, captures: Container[Capture]) -> Features:
        """Return some of it, on the device."""
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
