"""`StepStart`: what a step began with, so that it can be repeated."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gkd_core.contract.batch import Batch
from gkd_core.contract.method_base import MethodBase
from gkd_core.training.random_states import random_states, restore_random

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage

FIXED = ("config", "models", "modules")
"""Attributes of a method that no step changes."""


@dataclass(frozen=True)
class KeptState:
    """The attributes of a method that keeps a state, before a step; no tensor is copied.

    Attributes:
        method: The method or combiner.
        attributes: Its attributes; lists, mappings and objects among them are shallow copies.
        versions: The tensors among them, and how often each had been changed in place.
    """

    method: MethodBase
    attributes: Mapping[str, Any]
    versions: Sequence[tuple[Tensor, int]]

    @classmethod
    def of(cls, method: MethodBase) -> KeptState:
        """Return the state of a method as it is now."""
        attributes = {n: _shallow(v) for n, v in vars(method).items() if n not in FIXED}
        tensors = _tensors(list(attributes.values()))
        return cls(method, attributes, [(tensor, tensor._version) for tensor in tensors])

    @property
    def is_whole(self) -> bool:
        """Whether no tensor of it has been changed in place since."""
        return all(tensor._version == version for tensor, version in self.versions)

    def restore(self) -> None:
        """Give the method the attributes back that it had."""
        vars(self.method).update({name: _shallow(v) for name, v in self.attributes.items()})


@dataclass(frozen=True)
class StepStart:
    """A step before it is planned. The weights are those of the stage, until it updates them.

    Attributes:
        batches: Its micro-batches, with the text that models wrote, on the CPU.
        random: The states of the generators.
        kept: The state of each method that keeps one, by its name in the objective.
        loss_scale: The state of the loss scale; empty without one.
    """

    batches: Sequence[Batch]
    random: Mapping[str, Tensor]
    kept: Mapping[str, KeptState]
    loss_scale: Mapping[str, float]

    @classmethod
    def of(cls, stage: Stage, batches: Sequence[Batch]) -> StepStart:
        """Return the start of a step that is about to be planned."""
        scale = stage.engine.scale
        return cls(
            batches=batches,
            random=random_states(stage),
            kept={name: KeptState.of(method) for name, method in stage.objective.stateful()},
            loss_scale={} if scale is None else scale.state_dict(),
        )

    def restore(self, stage: Stage) -> None:
        """Bring the generators, the methods and the loss scale of the stage back to it."""
        for state in self.kept.values():
            state.restore()
        restore_random(stage, self.random)
        if stage.engine.scale is not None:
            stage.engine.scale.load_state_dict(self.loss_scale)


def _shallow(value: Any) -> Any:
    """Return a shallow copy of what a method may change inside; tensors stay."""
    changes = isinstance(value, (list, dict, set)) or _has_attributes(value)
    return copy.copy(value) if changes else value


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists, mappings and objects among them."""
    for value in values:
        inside: Sequence[Any] = [value]
        if isinstance(value, (list, set, tuple)):
            inside = list(value)
        elif isinstance(value, dict):
            inside = list(value.values())
        elif _has_attributes(value):
            inside = list(vars(value).values())
        yield from (part for part in inside if isinstance(part, Tensor))


def _has_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, (Tensor, nn.Module, type))
