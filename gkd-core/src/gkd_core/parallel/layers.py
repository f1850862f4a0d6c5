"""Tensor-parallel layers of megatron-core as drop-in replacements in transformers models.

They return a plain tensor, know how their weights are divided, and keep only weights in the state
dict. Megatron-core's sequence parallelism and its own gather of outputs are not used, because both
allocate on a CUDA device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from gkd_core.distributed.collectives import gather, sum_gradient
from gkd_core.distributed.megatron import (
    ColumnParallelLinear,
    ModelParallelConfig,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from gkd_core.distributed.rng import RngTracker
from gkd_core.distributed.shards import ShardSpec


class ParallelLayer(nn.Module):
    """Base class of all parallel layers.

    Attributes:
        splits: The division of each weight, by its name in the layer.
        whole_shape: Shape of the whole weight.
        tp_group: The tensor group.
        rng: Random draws between column-parallel and row-parallel layers, where this layer begins
            or ends such a section of a block.
    """

    splits: dict[str, ShardSpec]
    whole_shape: tuple[int, ...]
    tp_group: ProcessGroup
    rng: RngTracker | None = None

    def _ready(self, splits: dict[str, ShardSpec]) -> None:
        self.splits = splits
        self.whole_shape = splits["weight"].shape
        # Megatron-core's hook adds an empty extra-state entry, which our state dicts do not have.
        self._load_state_dict_pre_hooks.clear()

    # Megatron-core's versions would put an entry into every state dict.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def _forward_impl(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
    ) -> Tensor:
        """Multiply, and apply autocast here: megatron-core's backward misses it on CPU."""
        options["tp_group"] = self.tp_group
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            result: Tensor = super()._forward_impl(input, weight, bias=bias, **options)  # type: ignore[misc]
        return result


class ColumnLinear(ParallelLayer, ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer of which this rank computes a share of the outputs.

    Args:
        weight: The division of the weight.
        bias: The division of the bias, or None if there is none.
        group: The tensor group.
    """

    def __init__(self, weight: ShardSpec, bias: ShardSpec | None, group: ProcessGroup) -> None:
        inputs, outputs = _sides(weight)
        with torch.device("meta"):
            super().__init__(
                inputs,
                outputs,
                bias=bias is not None,
                init_method=None,
                tp_group=group,
                config=_config(),
            )
        self._ready(_named(weight, bias))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return this rank's share of the outputs."""
        result: Tensor = super().forward(hidden)[0]
        if self.training and self.rng is not None:
            self.rng.begin(self, result.device)
        return result


class RowLinear(ParallelLayer, RowParallelLinear):  # type: ignore[misc]
    """A linear layer of which this rank receives a share of the inputs; returns all outputs.

    Args:
        weight: The division of the weight.
        bias: Whether there is a bias; it is not divided.
        group: The tensor group.
    """

    def __init__(self, weight: ShardSpec, bias: bool, group: ProcessGroup) -> None:
        inputs, outputs = _sides(weight)
        with torch.device("meta"):
            super().__init__(
                inputs,
                outputs,
                bias=bias,
                input_is_parallel=True,
                skip_bias_add=False,
                init_method=None,
                tp_group=group,
                config=_config(),
            )
        self._ready({"weight": weight})

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the outputs, summed over the ranks."""
        if self.training and self.rng is not None:
            self.rng.end(hidden.device)
        result: Tensor = super().forward(hidden)[0]
        return result


class VocabularyHead(ColumnLinear):
    """The layer to the vocabulary; each rank has a share of the words and returns all logits.

    Attributes:
        words: Size of the vocabulary without padding.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: ShardSpec, bias: ShardSpec | None, group: ProcessGroup) -> None:
        super().__init__(weight, bias, group)
        self.words = weight.shape[0]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits `[..., V]`."""
        return gather(self.shard(hidden), -1, self.tp_group)[..., : self.words]

    def shard(self, hidden: Tensor) -> Tensor:
        """Return this rank's logits; the last shards have padding columns."""
        return super().forward(hidden)


class VocabularyEmbedding(ParallelLayer, VocabParallelEmbedding):  # type: ignore[misc]
    """An embedding of which this rank has a share of the words.

    Args:
        weight: The division of the weight.
        padding_idx: Word whose vector gets no gradient from here, or None.
        group: The tensor group.
    """

    def __init__(self, weight: ShardSpec, padding_idx: int | None, group: ProcessGroup) -> None:
        with torch.device("meta"):
            super().__init__(
                weight.size * weight.ranks,
                weight.shape[1],
                init_method=None,
                tp_group=group,
                config=_config(),
            )
        self.padding_idx = padding_idx
        self._ready({"weight": weight})

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, summed over the ranks: `[..., D]`."""
        vectors: Tensor = super().forward(tokens)
        if self.padding_idx is None:
            return vectors
        padding = (tokens == self.padding_idx).unsqueeze(-1)
        return torch.where(padding, vectors.detach(), vectors)


class RepeatedLinear(nn.Linear):
    """A projection to fewer key or value heads than ranks: replicated, each rank computes one head.

    Args:
        whole: The projection.
        head_size: Width of a head.
        group: The tensor group; consecutive ranks compute the same head.
    """

    def __init__(self, whole: nn.Linear, head_size: int, group: ProcessGroup) -> None:
        with torch.device("meta"):
            super().__init__(whole.in_features, whole.out_features, whole.bias is not None)
        self.weight, self.bias = whole.weight, whole.bias
        self.tp_group = group
        heads = whole.out_features // head_size
        head = group.rank() * heads // group.size()
        self.rows = slice(head * head_size, (head + 1) * head_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the keys or values of this rank's head."""
        bias = None if self.bias is None else self.bias[self.rows]
        hidden = sum_gradient(hidden, self.tp_group)
        return functional.linear(hidden, self.weight[self.rows], bias)


def _config() -> Any:
    return ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)


def _sides(weight: ShardSpec) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer, including padding."""
    shape = list(weight.shape)
    shape[weight.dim] = weight.parts * weight.size * weight.ranks
    inputs, outputs = shape if weight.transposed else reversed(shape)
    return inputs, outputs


def _named(weight: ShardSpec, bias: ShardSpec | None) -> dict[str, ShardSpec]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
