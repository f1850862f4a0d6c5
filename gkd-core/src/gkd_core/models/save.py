"""Saving of models as Hugging Face directories, and sizes of models and directories."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_core.atomic import replace_directory
from gkd_core.distributed.shards import sharding_of
from gkd_core.errors import ConfigError
from gkd_core.models.quiet import quiet


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: Mapping[str, Tensor] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write weights (safetensors), configuration and tokenizer so that transformers can load them.

    Everything is written beside `directory` and renamed at the end: whenever the process dies, the
    previously saved model is intact, there or as `.NAME.old` beside it.

    Args:
        model: The model, with class names in its configuration.
        tokenizer: Its tokenizer.
        directory: Target directory; a model saved there before is replaced.
        weights: The weights by name, if they are not the model's own.
        write_more: Writes what else belongs into the directory.

    Raises:
        ConfigError: `directory` holds something other than a saved model.
    """
    _refuse_foreign(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with quiet():
        model.save_pretrained(aside, state_dict=None if weights is None else dict(weights))
        tokenizer.save_pretrained(aside)
    if write_more is not None:
        write_more(aside)
    replace_directory(aside, directory)


def copy_model(source: Path, directory: Path) -> None:
    """Copy a saved model; whenever the process dies, the one it replaces is intact.

    Args:
        source: Directory of the model.
        directory: Target directory; a model saved there before is replaced.

    Raises:
        ConfigError: `directory` holds something other than a saved model.
        OSError: The model cannot be read or written.
    """
    _refuse_foreign(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    replace_directory(aside, directory)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of the whole model, counting tied ones once."""
    sharding = sharding_of(model)
    if sharding is None:
        return sum(parameter.numel() for parameter in model.parameters())
    splits = sharding.splits
    return sum(
        prod(splits[name].shape if name in splits else parameter.shape)
        for name, parameter in model.named_parameters()
    )


def count_embedding_parameters(model: nn.Module) -> int:
    """Return the number of parameters in embedding tables, counting tied ones once."""
    # A divided embedding is not an `nn.Embedding`, but has `num_embeddings` like one.
    modules = [module for module in model.modules() if hasattr(module, "num_embeddings")]
    tables: dict[Any, Any] = {module.weight: module for module in modules}
    shapes = (getattr(module, "whole_shape", weight.shape) for weight, module in tables.items())
    return sum(prod(shape) for shape in shapes)


def directory_size(directory: Path) -> int:
    """Return the total size in bytes of all files under a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _refuse_foreign(directory: Path) -> None:
    if directory.is_dir() and (not any(directory.iterdir()) or _is_model(directory)):
        return
    if directory.exists():
        raise ConfigError(
            f"cannot save a model as {str(directory)!r}, which exists and is not a model; choose "
            "another directory"
        )


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file()
