"""GGUF files: models of llama.cpp, whose quantized weights are converted to fp32 once.

The result is a model like any other, kept in the cache under the content of the file.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gkd_core import digest
from gkd_core.atomic import publish
from gkd_core.data.cache import cache_entry
from gkd_core.data.cache_limit import use_entry
from gkd_core.errors import ConfigError, first_line
from gkd_core.models.quiet import quiet
from gkd_core.named_path import named_path

SUFFIX = ".gguf"


def dequantized(model: str, origin: str) -> str:
    """Return the directory of a model with the weights of a GGUF file; another name as it is.

    Args:
        model: A GGUF file, or the name of another model.
        origin: Setting that named it.

    Raises:
        ConfigError: The package that reads such files is missing, or the file cannot be read.
    """
    file = named_path(model)
    if file.suffix.lower() != SUFFIX or not file.is_file():
        return model
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{origin} = {model!r} needs gguf, which is not installed. Install gkd-core[gguf]"
        )
    folder = cache_entry("gguf", digest.of_each_file([file])[file][: digest.SHORT])
    use_entry(folder)
    if not (folder / "config.json").is_file():
        _convert(file, folder, f"{origin} = {model!r}")
    return str(folder)


def _convert(file: Path, folder: Path, called: str) -> None:
    """Write the model of a GGUF file with its tokenizer, unless another process has meanwhile."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        _write(file, aside, called)
        publish(aside, folder)
    except OSError as error:
        if not folder.exists():
            raise ConfigError(
                f"{called} is converted in the cache, which cannot be written: {error}. Set "
                "GKD_CACHE to another directory"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(file: Path, directory: Path, called: str) -> None:
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
    with quiet():
        _unmarked(model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _unmarked(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with the same weights; transformers saves none that came from a GGUF file."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    made = type(model)(config)
    made.load_state_dict(model.state_dict(), assign=True)
    made.generation_config = model.generation_config
    return made
