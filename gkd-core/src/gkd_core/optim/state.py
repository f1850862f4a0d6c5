"""The state of an optimizer, whole and by the number of each weight, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gkd_core.contract.optimizer import STEP
from gkd_core.distributed.shards import Division, Sliceable
from gkd_core.errors import ConfigError

ON_DEVICE = ("fused", "capturable")
"""Group settings with which PyTorch's optimizers keep their step count on the device."""


class OptimizerState(Protocol):
    """The state of an optimizer that a checkpoint reads and writes."""

    def gather(self) -> dict[str, Tensor]:
        """Return the whole state as `NUMBER.NAME`, at least on the first rank."""

    def restore(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `gather`."""


class ShardedState:
    """The state of an optimizer that is given a process's weights or shards themselves.

    Args:
        optimizer: The optimizer.
        parameters: Its weights, in the order of their numbers.
        division: Their division over ranks. The state of a divided weight has its shape.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], division: Division
    ) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.division = division

    def gather(self) -> dict[str, Tensor]:
        """Return the whole state as `NUMBER.NAME`, at least on the first rank."""
        found: dict[str, Tensor] = {}
        for number, weight in enumerate(self.parameters):
            for name, own in self.optimizer.state.get(weight, {}).items():
                divided = self.division.divides(weight) and name != STEP
                whole = self.division.gather(weight, own) if divided else own
                if whole is not None:
                    found[f"{number}.{name}"] = whole
        return found

    def restore(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `gather`.

        Raises:
            ConfigError: A tensor is missing, or belongs to no weight.
        """
        states = by_number(tensors)
        check_complete(states, self.parameters, self.optimizer)
        for number, state in states.items():
            weight = self.parameters[number]
            own = {
                name: whole[...] if name == STEP else self.division.shard(weight, whole)
                for name, whole in state.items()
            }
            set_state(self.optimizer, weight, own)


def check_complete(
    states: Mapping[int, Mapping[str, object]],
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
) -> None:
    """Reject a stored state that lacks a tensor which another weight of its group has.

    Args:
        states: What is stored of each weight, by its number and by name.
        parameters: The weights, in the order of their numbers.
        optimizer: The optimizer.

    Raises:
        ConfigError: A tensor is missing, or belongs to no weight.
    """
    groups = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
    known: dict[int | None, set[frozenset[str]]] = {}
    for number, state in states.items():
        if number >= len(parameters):
            raise ConfigError(f"it has a state of weight {number}, but there are {len(parameters)}")
        known.setdefault(groups.get(id(parameters[number])), set()).add(frozenset(state))
    for number, state in states.items():
        for names in known[groups.get(id(parameters[number]))]:
            if state.keys() < names:  # other names are those of another way to update a weight
                missing = min(names - state.keys())
                raise ConfigError(f"the tensor {number}.{missing} is missing")


def by_number(tensors: Mapping[str, Sliceable]) -> dict[int, dict[str, Sliceable]]:
    """Return the state of each weight, by its number."""
    found: dict[int, dict[str, Sliceable]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = tensor
    return found


def set_state(optimizer: Optimizer, weight: nn.Parameter, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state of a weight, on the device where it expects each tensor.

    `Optimizer.load_state_dict` would convert the state to the data type of the weight.
    """
    group = next(g for g in optimizer.param_groups if any(weight is p for p in g["params"]))
    step_device = weight.device if any(map(group.get, ON_DEVICE)) else torch.device("cpu")
    for name, tensor in state.items():
        optimizer.state[weight][name] = tensor.to(step_device if name == STEP else weight.device)
