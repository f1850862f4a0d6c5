"""Backward passes whose weight gradients are discarded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn

COUNTERS = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
"""Counters by which ZeRO-3 tracks in a module how often its weights are still needed."""

_divided: WeakSet[nn.Module] = WeakSet()


def note_divided(model: nn.Module) -> None:
    """Record that ZeRO-3 has partitioned the weights of a model."""
    _divided.add(model)


@contextmanager
def discarded_backward() -> Iterator[None]:
    """Hide a backward pass from ZeRO-3's counters, because the same graph will see another."""
    modules = [module for model in _divided for module in model.modules()]
    kept = [{name: vars(m)[name] for name in COUNTERS if name in vars(m)} for m in modules]
    yield
    for module, counts in zip(modules, kept, strict=True):
        vars(module).update(counts)
