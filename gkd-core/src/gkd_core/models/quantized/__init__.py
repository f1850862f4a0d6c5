"""Teachers with quantized weights, which are converted to fp32 once.

The result is a model like any other, kept in the cache under the content of its files.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gkd_core import digest
from gkd_core.atomic import publish
from gkd_core.data.cache import cache_entry
from gkd_core.data.cache_limit import use_entry
from gkd_core.errors import ConfigError
from gkd_core.models.quantized import checkpoint, gguf
from gkd_core.models.quantized.packed import PackedModel
from gkd_core.models.quiet import quiet
from gkd_core.named_path import named_path


def dequantized(model: str, origin: str) -> str:
    """Return the directory of a model in fp32; the name of one that is not quantized as it is.

    Args:
        model: A GGUF file, or a directory or hub id.
        origin: Setting that named it.

    Raises:
        ConfigError: The package that computes with such weights is missing, or they cannot be
            read.
    """
    place, called = named_path(model), f"{origin} = {model!r}"
    packed = gguf.find(place) or checkpoint.find(place)
    if packed is None:
        return model
    if importlib.util.find_spec(packed.package) is None:
        raise ConfigError(
            f"{called} needs {packed.package}, which is not installed. Install {packed.install}"
        )
    folder = cache_entry("dequantized", _hashed(tuple(map(_stamped, packed.files.items()))))
    use_entry(folder)
    if not (folder / "config.json").is_file():
        _convert(packed, folder, called)
    return str(folder)


def _stamped(named: tuple[str, Path]) -> tuple[str, Path, int, int]:
    """Return a file by its name, with what changes when its content does."""
    name, file = named
    status = file.stat()
    return name, file, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _hashed(files: Sequence[tuple[str, Path, int, int]]) -> str:
    """Return the hash of the content of files, read once per process: a run asks several times."""
    return digest.of_value(digest.of_each_named({name: file for name, file, *_ in files}))


def _convert(packed: PackedModel, folder: Path, called: str) -> None:
    """Write a model with its tokenizer, unless another process has meanwhile."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        model, tokenizer = packed.read(called)
        with quiet():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        publish(aside, folder)
    except OSError as error:
        if not folder.exists():
            raise ConfigError(
                f"{called} is converted in the cache, which cannot be written: {error}. Set "
                "GKD_CACHE to another directory"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
