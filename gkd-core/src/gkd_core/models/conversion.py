"""The tensors of a checkpoint, and the weights of a model that transformers makes of them.

A checkpoint need not use the names of the model's modules. As transformers reads it, it renames
tensors (GPT-NeoX's `embed_out` is `lm_head`), adds or removes the prefix of the base model, and
joins or splits tensors (those of Qwen3-MoE's experts are stacked); as it saves, it reverses this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape: TypeAlias = tuple[int, ...]
TensorReader: TypeAlias = Callable[[str], Tensor]
"""Returns a tensor of a checkpoint by its name there."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, and what it becomes.

    Attributes:
        name: Its name in the checkpoint.
        weight: The name in the model of the weight it becomes, the first if there are several.
        pattern: The pattern of the converter that its name has.
        converter: Makes weights of tensors; None if the tensor is the weight.
    """

    name: str
    weight: str
    pattern: str | None = None
    converter: WeightConverter | None = None


@dataclass(frozen=True)
class Conversion:
    """Tensors of a checkpoint that are converted together.

    Attributes:
        model: The model they are for.
        converter: What makes weights of them.
        tensors: The tensors, in order.
    """

    model: PreTrainedModel
    converter: WeightConverter
    tensors: Sequence[StoredTensor]

    def convert(self, read: TensorReader) -> dict[str, Tensor]:
        """Return the weights made of the tensors, by their names in the model."""
        converter = copy.deepcopy(self.converter)
        for tensor in self.tensors:
            converter.add_tensor(tensor.weight, tensor.name, tensor.pattern, read(tensor.name))
        made = converter.convert(self.tensors[0].weight, model=self.model, config=self.model.config)
        return {name: _only(weight) for name, weight in made.items()}


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a model as a checkpoint has it.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        tensor: The name in the checkpoint, or that of the first tensor it is made of.
        conversion: What makes it; None if it is stored as it is.
    """

    name: str
    shape: Shape
    tensor: str
    conversion: Conversion | None = None

    def read(self, read: TensorReader) -> Tensor:
        """Return the weight."""
        if self.conversion is None:
            return read(self.tensor)
        return self.conversion.convert(read)[self.name]


def name_tensors(model: PreTrainedModel, names: Iterable[str]) -> Iterator[StoredTensor]:
    """Yield what each tensor of a checkpoint becomes when transformers reads it.

    Args:
        model: The model, which needs no weights.
        names: Names of the tensors in the checkpoint.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    owners = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix, known = model.base_model_prefix, model.state_dict()
    for name in names:
        weight, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if weight not in known and name in known:
            weight, pattern = name, None
        yield StoredTensor(name, weight, pattern, owners.get(pattern))


def find_weights(model: PreTrainedModel, stored: Mapping[str, Shape]) -> dict[str, StoredWeight]:
    """Return the weights that a checkpoint has, by their names in the model.

    Args:
        model: The model, which needs no weights.
        stored: Shapes of the tensors, by their names in the checkpoint.
    """
    groups: dict[str, list[StoredTensor]] = {}
    # Experts are stacked in the order of their numbers.
    for tensor in name_tensors(model, sorted(stored, key=dot_natural_key)):
        groups.setdefault(tensor.weight, []).append(tensor)
    found = (weight for group in groups.values() for weight in _weights(model, group, stored))
    return {weight.name: weight for weight in found}


def _weights(
    model: PreTrainedModel, group: Sequence[StoredTensor], stored: Mapping[str, Shape]
) -> Iterator[StoredWeight]:
    """Yield the weights that are made of tensors with the same first weight."""
    first = group[0]
    if first.converter is None:
        yield StoredWeight(first.weight, stored[first.name], first.name)
        return
    conversion = Conversion(model, first.converter, group)
    shaped = conversion.convert(lambda name: torch.empty(stored[name], device="meta"))
    for name, weight in shaped.items():
        yield StoredWeight(name, tuple(weight.shape), first.name, conversion)


def _only(made: Any) -> Tensor:
    """Return a converted weight, which some converters return in a list."""
    weight: Tensor = made[0] if isinstance(made, list) else made
    return weight
