"""Groups of weights that an optimizer treats alike, and their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from gkd_core.contract.optimizer import OptimizerFactory, TrainedWeight
from gkd_core.distributed.shards import Division
from gkd_core.models.parts import Part, Parts

Group: TypeAlias = dict[str, Any]
"""A parameter group of a PyTorch optimizer: `params`, `weight_decay`, `part`, `rule`."""


@dataclass(frozen=True)
class ChosenOptimizer:
    """The optimizer of a stage.

    Attributes:
        factory: What makes it.
        parts: All parts of the student, by which it may treat weights differently.
    """

    factory: OptimizerFactory
    parts: Parts = field(default_factory=lambda: MappingProxyType({}))

    def describe(
        self, weights: Iterable[nn.Parameter], division: Division
    ) -> dict[nn.Parameter, TrainedWeight]:
        """Return the facts about each weight."""
        part_of = _part_of(self.parts)
        return {w: TrainedWeight(division.shape(w), part_of.get(w)) for w in weights}


def weight_groups(
    models: Sequence[nn.Module], parts: Parts, chosen: ChosenOptimizer, division: Division
) -> list[Group]:
    """Return the trained weights by whether they decay, by part, and by rule.

    Args:
        models: The student and the auxiliary modules.
        parts: The parts of the student, if they are ever distinguished; else empty.
        chosen: The optimizer.
        division: The division of the weights over ranks.
    """
    weights = [p for model in models for p in model.parameters() if p.requires_grad]
    known, part_of = chosen.describe(weights, division), _part_of(parts)
    found: dict[tuple[bool, Part | None, str], list[nn.Parameter]] = {}
    for weight in sorted(weights, key=_is_vector):
        rule = chosen.factory.rule(known[weight])
        key = (not _is_vector(weight), part_of.get(weight), rule)
        found.setdefault(key, []).append(weight)
    decay = chosen.factory.training.weight_decay
    return [
        {"params": group, "weight_decay": decay * decays, "part": part, "rule": rule}
        for (decays, part, rule), group in found.items()
    ]


def members(groups: Iterable[Group]) -> list[nn.Parameter]:
    """Return the weights of groups, in the order in which checkpoints number them."""
    return [weight for group in groups for weight in group["params"]]


def set_rates(optimizer: Optimizer, lr: float, factors: Mapping[Part, float]) -> None:
    """Set the learning rate of every group; only frozen parts get 0."""
    for group in optimizer.param_groups:
        set_rate(group, lr * factors.get(group["part"], 1.0))


def set_rate(group: Group, lr: float) -> None:
    """Set the learning rate of a group to `lr`, times its own `rate`."""
    group["lr"] = lr * group.get("rate", 1.0)


def _part_of(parts: Parts) -> dict[nn.Parameter, Part]:
    return {weight: part for part, own in parts.items() for weight in own}


def _is_vector(weight: nn.Parameter) -> bool:
    """Return whether a weight is a bias or a normalization, with fewer than two dimensions."""
    return weight.dim() < 2
