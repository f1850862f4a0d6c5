"""`WholeOptimizer`: updates whole weights, whatever ranks have pieces of them.

Most optimizers are not elementwise: the update of an element depends on others of its weight, as
in a mean over a row or in the singular values of a matrix. One rank, the keeper of a weight, is
therefore sent the pieces of the weight and of its gradient. It updates the weight, keeps its state
and sends the pieces back. So the result does not depend on the layout, and no optimizer knows of
it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gkd_core.distributed.ranks import is_first, rank
from gkd_core.distributed.shards import Division, Sliceable
from gkd_core.optim.groups import ChosenOptimizer, Group, members, set_rate
from gkd_core.optim.state import by_number, check_complete, set_state


class Held(NamedTuple):
    """This rank's piece of a weight to be updated.

    Attributes:
        weight: The weight.
        value: The values to be overwritten: the weight, or this rank's shard of it.
        gradient: Their gradient.
    """

    weight: nn.Parameter
    value: Tensor
    gradient: Tensor


class Copies(Protocol):
    """The division of weight updates among the copies of the student."""

    def owner(self, weight: nn.Parameter) -> int:
        """Return the index of the copy that updates a weight; 0 if all do."""

    def updates(self, weight: nn.Parameter) -> bool:
        """Return whether this copy updates a weight."""

    def open(self, number: int) -> Iterable[Held]:
        """Return the weights of a group that this copy updates; all ranks call it.

        Args:
            number: Index of the group.
        """

    def close(self, number: int) -> None:
        """Send updated values to where they belong; all ranks call it."""


class EqualCopies:
    """Copies that all update all weights.

    Args:
        groups: The weights.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = [list(group["params"]) for group in groups]

    def owner(self, weight: nn.Parameter) -> int:
        """Return the first copy."""
        return 0

    def updates(self, weight: nn.Parameter) -> bool:
        """Return that this one does."""
        return True

    def open(self, number: int) -> Iterable[Held]:
        """Return the weights of a group that have a gradient."""
        for weight in self._groups[number]:
            if weight.grad is not None:
                yield Held(weight, weight.data, weight.grad)

    def close(self, number: int) -> None:
        """Do nothing."""


class Updater(NamedTuple):
    """The updater of one weight: a parameter without elements between steps, and its optimizer."""

    parameter: nn.Parameter
    optimizer: Optimizer


class WholeOptimizer(Optimizer):
    """Lets a factory's optimizer update whole weights of which ranks have pieces.

    Args:
        chosen: The optimizer.
        groups: The weights.
        division: Their division by tensor parallelism.
        copies: How the copies of the student share the updates.
    """

    def __init__(
        self,
        chosen: ChosenOptimizer,
        groups: Sequence[Group],
        division: Division,
        copies: Copies,
    ) -> None:
        lr = chosen.factory.training.lr
        super().__init__([{**g, "number": n} for n, g in enumerate(groups)], {"lr": lr})
        self._weights = members(groups)
        self._settings = {w: _without_weights(g) for g in groups for w in g["params"]}
        self._division = division
        self._copies = copies
        self._chosen = chosen
        self._updaters: dict[nn.Parameter, Updater] = {}

    @functools.cached_property
    def _keepers(self) -> Mapping[nn.Parameter, int]:
        """The rank of a tensor group that keeps each divided weight.

        Found at first use, when it is known which copy updates which weight.
        """
        return choose_keepers(self._chosen, self._weights, self._division, self._copies)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights of the groups that are not frozen."""
        for group in self.param_groups:
            if group["lr"] == 0:
                continue
            for held in self._copies.open(group["number"]):
                self._update(held, group["lr"])
            self._copies.close(group["number"])

    def gather(self) -> dict[str, Tensor]:
        """Return the whole state as `NUMBER.NAME` on the first rank."""
        found: dict[str, Tensor] = {}
        for number, weight in enumerate(self._weights):
            state = _sent(self._state(weight), self._rank(weight))
            found.update({f"{number}.{name}": tensor for name, tensor in state.items()})
        return found

    def restore(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `gather`; a rank reads the state of the weights that it keeps.

        Raises:
            ConfigError: A tensor is missing, or belongs to no weight.
        """
        states = by_number(tensors)
        check_complete(states, self._weights, self)
        for number, state in states.items():
            weight = self._weights[number]
            if self._copies.updates(weight) and self._keeps(weight):
                updater = self._updater(weight)
                own = {name: tensor[...] for name, tensor in state.items()}
                set_state(updater.optimizer, updater.parameter, own)

    def _update(self, held: Held, lr: float) -> None:
        keeper = self._keepers.get(held.weight)
        if keeper is None:
            self._run(held.weight, held.value, held.gradient, lr)
            return
        value = self._division.collect(held.weight, held.value, keeper)
        gradient = self._division.collect(held.weight, held.gradient, keeper)
        if value is not None and gradient is not None:
            self._run(held.weight, value, gradient, lr)
        self._division.distribute(held.weight, value, held.value, keeper)

    def _run(self, weight: nn.Parameter, value: Tensor, gradient: Tensor, lr: float) -> None:
        """Update a whole weight in place."""
        parameter, optimizer = self._updater(weight)
        parameter.data, parameter.grad = value, gradient
        for group in optimizer.param_groups:
            set_rate(group, lr)
        optimizer.step()
        parameter.grad = None
        parameter.data = value.new_empty(0)

    def _updater(self, weight: nn.Parameter) -> Updater:
        if weight not in self._updaters:
            # Only matrices have two dimensions: an optimizer may look at once.
            shape = (0,) * len(self._division.shape(weight))
            parameter = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=weight.device))
            group = {"params": [parameter], **self._settings[weight]}
            self._updaters[weight] = Updater(parameter, self._chosen.factory.build([group]))
        return self._updaters[weight]

    def _keeps(self, weight: nn.Parameter) -> bool:
        """Return whether this rank of a copy that updates a weight has its state."""
        return self._keepers.get(weight, self._division.rank) == self._division.rank

    def _rank(self, weight: nn.Parameter) -> int:
        """Return the first rank that has the state of a weight."""
        return self._copies.owner(weight) * self._division.ranks + self._keepers.get(weight, 0)

    def _state(self, weight: nn.Parameter) -> Mapping[str, Tensor]:
        updater = self._updaters.get(weight)
        return {} if updater is None else updater.optimizer.state.get(updater.parameter, {})


def choose_keepers(
    chosen: ChosenOptimizer,
    weights: Iterable[nn.Parameter],
    division: Division,
    copies: Copies,
) -> dict[nn.Parameter, int]:
    """Return the rank of a tensor group that keeps the state of each divided weight.

    Large states go first, each to the rank that has least so far. The first rank ends with most, so
    that `gkd plan`, which simulates it, counts the largest share.

    Args:
        chosen: The optimizer.
        weights: The weights.
        division: Their division by tensor parallelism.
        copies: Which copy of the student updates which weight; each balances its own.
    """
    divided = [weight for weight in weights if division.divides(weight)]
    sizes = {
        weight: chosen.factory.state_bytes(known)
        for weight, known in chosen.describe(divided, division).items()
    }
    found: dict[nn.Parameter, int] = {}
    for owner in sorted({copies.owner(weight) for weight in divided}):
        own = {weight: sizes[weight] for weight in divided if copies.owner(weight) == owner}
        found.update(_balanced(own, division.ranks))
    return found


def _balanced(sizes: Mapping[nn.Parameter, int], ranks: int) -> dict[nn.Parameter, int]:
    loads, place = [0] * ranks, {}
    for weight in sorted(sizes, key=lambda weight: -sizes[weight]):
        place[weight] = loads.index(min(loads))
        loads[place[weight]] += sizes[weight]
    order = sorted(range(ranks), key=lambda rank: -loads[rank])
    return {weight: order.index(rank) for weight, rank in place.items()}


def _sent(state: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
    """Return a state, which rank `source` has, on the first rank; nothing on the others."""
    if source == 0:
        return dict(state) if is_first() else {}
    if rank() == source:
        dist.send_object_list([[(n, tuple(t.shape), t.dtype) for n, t in state.items()]], dst=0)
        for tensor in state.values():
            dist.send(tensor.cpu().contiguous(), dst=0)
    if not is_first():
        return {}
    head: list[Any] = [None]
    dist.recv_object_list(head, src=source)
    found = {}
    for name, shape, dtype in head[0]:
        found[name] = torch.empty(shape, dtype=dtype)
        dist.recv(found[name], src=source)
    return found


def _without_weights(group: Group) -> Group:
    return {name: value for name, value in group.items() if name != "params"}
