"""Checkpoints of Hugging Face with weights of bitsandbytes, GPTQ or AWQ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gkd_core.errors import ConfigError, first_line
from gkd_core.models.quantized.packed import PackedModel, unpacked
from gkd_core.models.quiet import quiet

PACKAGES = MappingProxyType(
    {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel"}
)
"""The package that computes with the weights of each way to quantize."""

CHUNK = 1024
"""Rows of the identity that a layer reads at once."""

FAR = 0.1
"""Largest difference of the converted model's output, relative to the size of the output.

Right weights differ by the rounding of the quantized layers, which compute in 16 or 8 bits.
"""


def find(place: Path) -> PackedModel | None:
    """Return the model of a directory; None if its weights are not quantized in a known way.

    Args:
        place: What may be such a directory.
    """
    config = _config(place)
    table = config.get("quantization_config")
    package = PACKAGES.get(table.get("quant_method", "")) if isinstance(table, dict) else None
    if package is None or "auto_map" in config:
        return None
    files = {file.name: file for file in place.iterdir() if file.is_file()}
    name = (config.get("architectures") or [""])[0]
    return PackedModel(package, package, files, partial(_read, place, name))


def _config(place: Path) -> dict[str, Any]:
    try:
        found = json.loads((place / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(
    place: Path, architecture: str, called: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet():
            model = getattr(transformers, architecture).from_pretrained(
                place, device_map={"": device}, use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(place)
        made = unpacked(model, dict(_weights(model)))
        apart = _difference(made, model)
    except Exception as error:  # every package has errors of its own
        raise ConfigError(
            f"{called} cannot be read: {first_line(error)}. Give the checkpoint that it was made "
            "from, or a copy converted back to bf16"
        ) from error
    if not apart < FAR:
        raise ConfigError(
            f"{called} cannot be converted: the outputs of its weights in fp32 differ from those "
            f"of the quantized ones by {apart:.0%}. Give the checkpoint that it was made from"
        )
    return made, tokenizer


@torch.no_grad()
def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a model, on the CPU, as if it were not quantized."""
    packed = {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "in_features") and type(layer) is not nn.Linear
    }
    theirs = tuple(f"{name}." for name in packed)
    for name, value in model.state_dict().items():
        if not name.startswith(theirs):
            yield name, value.cpu()
    for name, layer in packed.items():
        bias, layer.bias = layer.bias, None
        yield f"{name}.weight", linear_map(layer, model.device, model.dtype)
        if bias is not None:
            yield f"{name}.bias", bias.cpu()
        layer.bias = bias


def linear_map(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix that a layer without bias multiplies by, `[out, in]`, on the CPU.

    It is read off what the layer makes of the unit vectors. So it is what the layer computes with,
    in whatever order the package keeps its numbers.

    Args:
        layer: The layer, with `in_features`.
        device: Where it is.
        dtype: The type of what it reads.
    """
    size = int(layer.in_features)  # type: ignore[arg-type]
    # Without a gradient, bitsandbytes repacks the weights on some processors, and rounds them.
    every = torch.eye(size, dtype=dtype, device=device).requires_grad_()
    made = [layer(every[at : at + CHUNK]).float().cpu() for at in range(0, size, CHUNK)]
    return torch.cat(made).T.contiguous()


@torch.no_grad()
def _difference(made: PreTrainedModel, model: PreTrainedModel) -> float:
    """Return how far the outputs of two models are apart, relative to those of the second."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(made.config.vocab_size, (2, 16), generator=draw)
    expected = model(input_ids=tokens.to(model.device))[0].float().cpu()
    return float((made.eval()(input_ids=tokens)[0] - expected).norm() / expected.norm())
