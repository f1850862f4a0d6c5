"""When the weights that ZeRO-3 shards are gathered, and when they are released.

DeepSpeed 0.19 (`runtime/zero/partitioned_param_coordinator.py`) gathers the weights of a module
before it runs, in forward and backward passes, and prefetches some of the next ones. It releases
them afterwards, unless they are needed again soon.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from gkd_core.planning.memory_tracker import ABSENT, TRANSIT, MemoryTracker

REUSED = 10**9
"""Weights stay whole if reused before this many others; prefetching stops at this many."""

EARLY = 5 * 10**7
"""Weights to prefetch; the last module fetched may exceed it."""


class Gathering:
    """Gathers and releases weights as the student runs.

    Args:
        student: The student.
        divided: The sharded weights, including those of methods.
        tracker: Tracks the memory of the weights.
        ranks: Number of ranks over which they are sharded.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        divided: Sequence[Parameter],
        tracker: MemoryTracker,
        ranks: int,
    ) -> None:
        self.tracker = tracker
        self.ranks = ranks
        self.whole: dict[int, Parameter] = {}
        self.buffers: dict[int, Tensor] = {}
        head = student.get_output_embeddings()
        inside = {id(weight) for weight in student.parameters()}
        inside -= {id(weight) for weight in ([] if head is None else head.parameters())}
        # The head and modules of methods are also used outside their own forward pass, so their
        # weights stay whole from the forward pass to the end of the backward pass.
        self.always = [weight for weight in divided if id(weight) not in inside]
        wanted = {id(weight) for weight in divided} & inside
        self.order: list[list[Parameter]] = []
        modules = []
        for module in student.modules():
            own = [p for p in module.parameters(recurse=False) if id(p) in wanted]
            if own:
                modules.append(module)
                self.order.append(own)
        student.base_model.register_forward_pre_hook(lambda *_: self._fetch(self.always))
        after = sum(_size(own) for own in self.order)
        for place, module in enumerate(modules):
            after -= _size(self.order[place])
            module.register_forward_pre_hook(partial(self._before, place))
            module.register_forward_hook(partial(self._after, place, 2 * after < REUSED))

    def release(self, weights: Iterable[Parameter]) -> None:
        """Release weights."""
        for weight in weights:
            if self.whole.pop(id(weight), None) is not None:
                self.tracker.claim([weight], ABSENT)

    def release_all(self) -> None:
        """Release all weights."""
        self.buffers.clear()
        self.release(list(self.whole.values()))

    def _before(self, place: int, *_: Any) -> None:
        """Gather the weights of a module that is about to run, and prefetch some of the next."""
        self._fetch(self.order[place])
        for weight in self.order[place]:
            self.buffers.pop(id(weight), None)
        early: list[Parameter] = []
        direction = -1 if _is_backward() else 1
        place += direction
        while (
            0 <= place < len(self.order)
            and _size(early) < EARLY
            and _size(self.whole.values()) < REUSED
        ):
            early += [p for p in self.order[place] if id(p) not in self.whole]
            self._fetch(self.order[place])
            place += direction
        self._buffer(early)

    def _buffer(self, weights: Sequence[Parameter]) -> None:
        """Keep the buffer in which weights arrive together until the last of them is used.

        Each weight is copied out of the buffer; a weight that arrives alone is used in place.
        """
        if len(weights) > 1:
            with self.tracker.track(TRANSIT):
                buffer = torch.empty(_size(weights))
            self.buffers.update((id(weight), buffer) for weight in weights)

    def _after(self, place: int, stays: bool, _: Any, __: Any, out: Any) -> None:
        """Release the weights of a module that has run; gather them again for its backward."""
        if not stays and not _is_backward():
            self.release(self.order[place])
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(partial(self._before, place))  # type: ignore[no-untyped-call]

    def _fetch(self, weights: Iterable[Parameter]) -> None:
        for weight in weights:
            if id(weight) not in self.whole:
                self.whole[id(weight)] = weight
                self.tracker.claim([weight], TRANSIT)
                self.tracker.send("_allgather_base_", 4 * weight.numel(), self.ranks)


def _is_backward() -> bool:
    """Return whether a backward pass is running, including its recomputation of blocks."""
    found: int = torch._C._current_graph_task_id()
    return found != -1


def _size(weights: Iterable[Parameter]) -> int:
    return sum(weight.numel() for weight in weights)
