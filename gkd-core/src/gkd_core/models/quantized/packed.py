"""A model with quantized weights that can be read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PackedModel:
    """A model with quantized weights.

    Attributes:
        package: The package that computes with them.
        install: What to install to have it.
        files: Its files by name.
        read: Returns the model in fp32 and its tokenizer, given what to call it in messages.
    """

    package: str
    install: str
    files: Mapping[str, Path]
    read: Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def unpacked(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model of the same shape with other weights, in fp32 and not marked as quantized.

    Args:
        model: The model whose configurations are taken.
        weights: All parameters and buffers by name.
    """
    config = copy.deepcopy(model.config)
    del config.quantization_config  # transformers saves no weights of a model that has it
    config.dtype = torch.float32
    made = type(model)(config)
    made.load_state_dict(
        {name: w.float() if w.is_floating_point() else w for name, w in weights.items()},
        assign=True,
    )
    made.generation_config = model.generation_config
    return made
