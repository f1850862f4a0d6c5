"""The linear layers around the heads and the feed-forward neurons of a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import MethodError
from gkd_core.models.sites import Sites
from gkd_core.models.transfer import FFN, AxisPart, axis_parts


@dataclass(frozen=True)
class MapSide:
    """The inputs or the outputs of a linear layer, which belong to heads or to neurons.

    Attributes:
        module: An `nn.Linear` or a `Conv1D`.
        outputs: Whether it is the outputs, which have a bias.
        blocks: Features of one head (or neuron) in each of the consecutive parts: fused query, key
            and value are three.
    """

    module: nn.Module
    outputs: bool
    blocks: tuple[int, ...]

    @property
    def dim(self) -> int:
        """Dimension of the weight that holds these features."""
        transposed = isinstance(self.module, Conv1D)
        return 1 if self.outputs == transposed else 0

    @property
    def units(self) -> int:
        """Number of heads or neurons."""
        return int(self.weight.shape[self.dim]) // sum(self.blocks)

    @property
    def weight(self) -> Tensor:
        """The weight, `[out, in]`; `[in, out]` in a `Conv1D`."""
        return self.module.get_parameter("weight")

    def keep(self, kept: Sequence[int]) -> None:
        """Keep the features of some heads or neurons, in the given order."""
        features = self._features(kept)
        names = ("weight", "bias") if self.outputs else ("weight",)
        for name in names:
            old = getattr(self.module, name, None)
            if old is not None:
                dim = self.dim if name == "weight" else 0
                new = old.detach().index_select(dim, features.to(old.device))
                setattr(self.module, name, Parameter(new, old.requires_grad))
        self._count(len(features))

    def _features(self, kept: Sequence[int]) -> Tensor:
        units, starts, start = self.units, [], 0
        for block in self.blocks:
            starts += [(start + unit * block, block) for unit in kept]
            start += units * block
        ranges = [torch.arange(first, first + block) for first, block in starts]
        return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.long)

    def _count(self, features: int) -> None:
        names = ("nf", "nx") if isinstance(self.module, Conv1D) else ("out_features", "in_features")
        setattr(self.module, names[0 if self.outputs else 1], features)


@dataclass(frozen=True)
class BlockMaps:
    """The linear layers of one block.

    Attributes:
        attention: The attention module.
        heads: The projections to queries, keys and values, and last the one from their context.
        neurons: The projections to the neurons, and last the one from them.
    """

    attention: nn.Module
    heads: tuple[MapSide, ...]
    neurons: tuple[MapSide, ...]


def find_maps(sites: Sites) -> list[BlockMaps]:
    """Return the linear layers of each block of a model.

    Raises:
        MethodError: Slicing does not support a module, which the message names.
    """
    if not sites.attentions or not sites.ffns:
        raise MethodError(
            f"{type(sites.model).__name__} cannot be sliced: its attention or feed-forward modules "
            "are not known. A plugin can name them with a `Sites` class"
        )
    return [_block_maps(sites, layer) for layer in range(len(sites.blocks))]


def _block_maps(sites: Sites, layer: int) -> BlockMaps:
    info = ModelInfo.read("", sites.model.config, 0)
    down, attention = sites.ffns[layer], sites.attentions[layer]
    heads: list[MapSide] = []
    neurons: list[MapSide] = []
    output: MapSide | None = None
    for name, module in _matrices(sites.blocks[layer]):
        made, taken = axis_parts(sites.model.config.model_type, name)
        if module is down:
            continue
        if taken is not None:
            output = MapSide(module, False, _features(taken, info))
        elif made is not None and FFN not in made:
            heads.append(MapSide(module, True, _features(made, info)))
        else:
            neurons.append(MapSide(module, True, (1,) * len(made or (FFN,))))
    if output is None:
        raise _unknown(sites, layer, "no output projection of the attention was found")
    maps = BlockMaps(attention, (*heads, output), (*neurons, MapSide(down, False, (1,))))
    _check(sites, layer, maps)
    return maps


def _matrices(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _features(parts: Sequence[AxisPart], info: ModelInfo) -> tuple[int, ...]:
    """Return the number of features of each part that belong to one key/value head."""
    return tuple(
        prod(size if isinstance(size, int) else getattr(info, size) for size in part)
        // info.kv_heads
        for part in parts
    )


def _check(sites: Sites, layer: int, maps: BlockMaps) -> None:
    """Reject a block with a layer, norm or bias that would no longer fit its heads or neurons."""
    for sides in (maps.heads, maps.neurons):
        units = sides[-1].units
        for side in sides:
            size, expected = side.weight.shape[side.dim], units * sum(side.blocks)
            if size != expected:
                raise _unknown(
                    sites, layer, f"a layer has {size} features where {expected} were expected"
                )
    known = {id(p) for side in maps.heads for p in side.module.parameters()}
    head_size = ModelInfo.read("", sites.model.config, 0).head_size
    for name, parameter in maps.attention.named_parameters():
        if id(parameter) not in known and parameter.numel() > head_size:
            raise _unknown(sites, layer, f"the attention has a parameter {name} for all heads")


def _unknown(sites: Sites, layer: int, problem: str) -> MethodError:
    return MethodError(
        f"{type(sites.model).__name__} cannot be sliced: in block {layer + 1} {problem}. Leave its "
        "width as it is; whole blocks can be removed from any model"
    )
