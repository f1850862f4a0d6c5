"""Backward passes whose gradients of weights nobody keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn

COUNTERS = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
"""What ZeRO-3 counts in a module to know how often its weights are still needed."""

_divided: WeakSet[nn.Module] = WeakSet()


def note_divided(model: nn.Module) -> None:
    """Note that ZeRO-3 has divided the weights of a model."""
    _divided.add(model)


@contextmanager
def discarded_backward() -> Iterator[None]:
    """Make a backward pass one that is not counted, as the same graph will see another."""
    modules = [module for model in _divided for module in model.modules()]
    kept = [{name: vars(m)[name] for name in COUNTERS if name in vars(m)} for m in modules]
    yield
    for module, counts in zip(modules, kept, strict=True):
        vars(module).update(counts)
