"""Removal and reordering of a model's heads and neurons."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gkd_core.models.quiet import quiet
from gkd_core.models.sites import Sites, own_sites
from gkd_core.models.slicing.empty import Headless, InputlessConv1D
from gkd_core.models.slicing.maps import BlockMaps, find_maps
from gkd_core.models.slicing.widths import SLICES_KEY, WIDTHS_KEY, Widths, is_sliced, write_widths

COUNTS = ("split_size", "num_heads")
"""Attributes that hold the head shapes of attention modules (of GPT-2 and OPT)."""


@dataclass(frozen=True)
class Kept:
    """The heads and neurons of each block to keep, in their new order.

    Attributes:
        heads: Key/value heads (with the query heads that share them), counted from 0.
        neurons: Feed-forward neurons, counted from 0.
    """

    heads: Sequence[Sequence[int]]
    neurons: Sequence[Sequence[int]]

    @property
    def widths(self) -> Widths:
        """The number of heads and neurons kept in each block."""
        return Widths(tuple(map(len, self.heads)), tuple(map(len, self.neurons)))

    @classmethod
    def first(cls, widths: Widths) -> Kept:
        """Return the first heads and neurons of each block."""
        return cls([range(n) for n in widths.heads], [range(n) for n in widths.neurons])


def keep_units(sites: Sites, kept: Kept) -> None:
    """Remove everything that is not kept from a model, in place, and update its configuration.

    With all heads and neurons in another order, the model computes the same function as before.

    Args:
        sites: The model's sites; they become invalid if a block loses all its heads.
        kept: The heads and neurons to keep.

    Raises:
        MethodError: Slicing does not support the architecture.
    """
    blocks = find_maps(sites)
    for maps, heads, neurons in zip(blocks, kept.heads, kept.neurons, strict=True):
        before = maps.heads[-1].units
        for side in maps.heads:
            side.keep(heads)
        for side in maps.neurons:
            side.keep(neurons)
        if len(heads) != before:
            counts = (*COUNTS, *sites.counts)
            _adjust_counts(maps.attention, counts, len(heads), before)
        _stand_in(sites.model, maps)
    write_widths(sites.model.config, kept.widths)


def _adjust_counts(attention: nn.Module, counts: Iterable[str], heads: int, before: int) -> None:
    """Adjust an attention module to fewer heads."""
    for name in dict.fromkeys(counts):
        if hasattr(attention, name):
            setattr(attention, name, getattr(attention, name) * heads // before)


def _stand_in(model: PreTrainedModel, maps: BlockMaps) -> None:
    """Replace modules that cannot work without heads or neurons."""
    names = {module: name for name, module in model.named_modules()}
    for last in (maps.heads[-1], maps.neurons[-1]):
        if not last.units and type(last.module) is Conv1D:
            model.set_submodule(names[last.module], InputlessConv1D(last.module))
    if not maps.heads[-1].units and not isinstance(maps.attention, Headless):
        output = model.get_submodule(names[maps.heads[-1].module])
        model.set_submodule(names[maps.attention], Headless(maps.attention, output))


def narrow(model: PreTrainedModel) -> None:
    """Give a model built from its configuration the widths listed there."""
    config = model.config
    if not is_sliced(config):
        return
    widths = Widths.read(config)
    delattr(config, WIDTHS_KEY)  # the model does not have them yet
    keep_units(own_sites(model), Kept.first(widths))
    setattr(config, WIDTHS_KEY, widths.as_tree())


def narrowed(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a subclass whose models have the widths listed in their configuration."""

    class Narrowed(stock):  # type: ignore[misc]
        def __init__(self, config: PretrainedConfig, *inputs: Any, **options: Any) -> None:
            super().__init__(config, *inputs, **options)
            narrow(self)

    # transformers looks up renamed weights by the name and module of the class.
    Narrowed.__name__, Narrowed.__module__ = stock.__name__, stock.__module__
    return Narrowed


def sliced_copy(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Return a copy of a model with some of its heads and neurons.

    Args:
        model: The model; it stays as it is, and hooks on it are not copied.
        kept: The heads and neurons to keep.

    Raises:
        MethodError: Slicing does not support the architecture.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        made = build(type(model), copy.deepcopy(model.config))
    made.to(next(model.parameters()))
    made.load_state_dict(model.state_dict())
    keep_units(own_sites(made), kept)
    if hasattr(made.config, SLICES_KEY):
        delattr(made.config, SLICES_KEY)  # the order may have changed
    return made.train(model.training)


def build(stock: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build a model with random weights and the widths listed in its configuration."""
    model = stock(config)
    narrow(model)
    return model
