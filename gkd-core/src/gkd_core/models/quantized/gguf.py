"""GGUF files: models of llama.cpp."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gkd_core.errors import ConfigError, first_line
from gkd_core.models.quantized.packed import PackedModel, unpacked
from gkd_core.models.quiet import quiet

SUFFIX = ".gguf"


def find(place: Path) -> PackedModel | None:
    """Return the model of a file; None if it is no GGUF file.

    Args:
        place: What may be such a file.
    """
    if place.suffix.lower() != SUFFIX or not place.is_file():
        return None
    return PackedModel("gguf", "gkd-core[gguf]", {"model": place}, partial(_read, place))


def _read(file: Path, called: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = str(file.parent)
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name)
    except Exception as error:  # the parser raises whatever a damaged file makes it do
        raise ConfigError(
            f"{called} cannot be read: {first_line(error)}. Give a GGUF file of an architecture "
            "that transformers converts, or the checkpoint that it was made from"
        ) from error
    return unpacked(model, model.state_dict()), tokenizer
