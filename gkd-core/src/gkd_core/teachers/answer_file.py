"""Answers of a teacher in a file of the cache: one run asks, the others read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gkd_core.atomic import draft
from gkd_core.data.cache import cache_entry, locked_entry, set_aside, warn_unwritable
from gkd_core.data.cache_limit import use_entry
from gkd_core.distributed.ranks import is_first, tell, wait
from gkd_core.teachers.values import RowValues, TokenValues, Values

VALUES, STARTS, SPANS = "values", "starts", "spans"
"""Tensors of a file; the last one is there or not."""


def answer_file(key: str) -> Path:
    """Return the file of the answers with a key, which says what they are about."""
    return cache_entry("answers", f"{key}.safetensors")


def shared(path: Path, ask: Callable[[], Values | None]) -> Values | None:
    """Return the answers in a file; if there is none, ask for them and write it.

    Of several runs that need it, one asks and the others wait. A file that is damaged or cannot be
    written is a warning.

    Args:
        path: The file.
        ask: Returns the answers; every rank calls it.
    """
    use_entry(path)
    with locked_entry(path) if is_first() else nullcontext():
        if tell(is_first() and path.exists() and _is_whole(path)):
            return _read(path)
        values = ask()
        if values is not None and is_first():
            _write(values, path)
        wait()
    return values


def _is_whole(path: Path) -> bool:
    """Return whether a file can be read; one that is damaged is set aside."""
    try:
        _read(path)
    except (OSError, SafetensorError, KeyError) as error:
        set_aside(path, str(error))
        return False
    return True


def _read(path: Path) -> Values:
    """Return the answers in a file, mapped into memory."""
    tensors = load_file(path)
    if STARTS in tensors:
        return TokenValues(tensors[VALUES], tensors[STARTS], SPANS in tensors)
    return RowValues(tensors[VALUES])


def _write(values: Values, path: Path) -> None:
    tensors = {VALUES: values.values}
    if isinstance(values, TokenValues):
        tensors[STARTS] = values.starts
        tensors |= {SPANS: torch.ones(1)} if values.spans else {}
    try:
        with draft(path) as aside:
            save_file(tensors, aside)
    except (OSError, SafetensorError) as error:
        warn_unwritable(error if isinstance(error, OSError) else OSError(str(error)))
