"""Models with low-rank adapters: telling them apart, merging, and saving adapters alone.

`students/lora.py` puts adapters of PEFT into a student. Everything here works on the names of
weights, so that PEFT is needed by nobody who has no adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

BASE = "base_layer"
"""PEFT's name for the layer that an adapter wraps."""

ADAPTER = "default"
"""PEFT's usual name for an adapter."""

FOLDER = "adapter"
"""The directory beside the weights of a merged student that holds the adapter alone."""

IN_FILES = "base_model.model."
"""The prefix of the names of weights in files of PEFT."""


def has_adapters(model: nn.Module) -> bool:
    """Return whether a model has adapters, beside which its other weights are frozen."""
    return hasattr(model, "peft_config")


def is_adapted(module: nn.Module) -> bool:
    """Return whether a layer has an adapter; its modules stand for parts of a sum, not layers."""
    return hasattr(module, BASE)


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a model that are trained: all, unless some are frozen."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def merged_state(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the adapters merged, under the names they had without.

    Args:
        model: The model.
        weights: Its weights by name, whole: those of `whole_state`, or none on other ranks.
    """
    if not has_adapters(model):
        return dict(weights)
    found = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        layer, inner, rest = name.rpartition(f".{BASE}.")
        if inner and rest == "weight":
            weight = weight + _update(model.get_submodule(layer), layer, weights).to(weight)
        found[f"{layer}.{rest}" if inner else name] = weight
    return found


def adapter_writer(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> Callable[[Path], None] | None:
    """Return a function that writes a model's adapter, in PEFT's format, below a directory.

    None if there is no adapter, or if its base is no model that could be named.

    Args:
        model: The model.
        weights: Its weights by name, whole.
    """
    if not has_adapters(model):
        return None
    config: Any = model.peft_config[ADAPTER]  # type: ignore[index]
    if config.base_model_name_or_path is None:
        return None
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    own = {name: weight for name, weight in weights.items() if name in trained}

    def write(directory: Path) -> None:
        folder = directory / FOLDER
        config.save_pretrained(folder)
        tensors = dict(_named_for_files(own))
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})

    return write


def _update(layer: Any, name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the update that an adapter adds to the matrix of its layer."""
    down, up = (weights[f"{name}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
    update: Tensor = (up @ down) * layer.scaling[ADAPTER]
    return update.T if layer.fan_in_fan_out else update


def _named_for_files(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights.items():
        plain = name.replace(f".{ADAPTER}.", ".") if ".lora_" in name else name
        yield f"{IN_FILES}{plain}", weight.detach().cpu().contiguous()
