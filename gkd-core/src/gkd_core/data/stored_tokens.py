"""Tokenized rows, made once: the next run maps them into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gkd_core import digest
from gkd_core.contract.task import Split
from gkd_core.data.array_spool import ROOM
from gkd_core.data.cache import cache_entry
from gkd_core.data.encode import Encoded
from gkd_core.data.pack import pack
from gkd_core.data.stored_column import StoredColumn, write_column
from gkd_core.data.stored_folder import made_once
from gkd_core.data.stored_rows import code_hash, split_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gkd_core.kinds.task_kind import TaskKind

MANY = 10_000
"""Rows of a split whose tokens are kept; fewer are tokenized as quickly again."""

EXTRA = "extra-"
"""Begins the names of what is in `Encoded.extra`."""

ARRAY, COLUMN, SPLIT = "array", "column", "split"
"""The form of a stored value: an array, a column, or none, for the split itself."""


def tokenized(
    kind: TaskKind,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    classes: Sequence[str],
    packed: bool = False,
) -> Encoded:
    """Return `kind.encode` of a split, from the cache if it is there.

    Args:
        kind: The kind of task.
        split: The rows.
        tokenizer: The tokenizer.
        max_length: Maximum length of a row, and of a block of rows, in tokens.
        classes: Names of the classes.
        packed: Whether several rows share a block (`pack`); texts alone may be cut.
    """

    def encode() -> Encoded:
        encoded = kind.encode(split, tokenizer, max_length, classes)
        whole = split.chat or split.target is not None
        return pack(encoded, max_length, whole) if packed else encoded

    if len(split) < MANY:
        return encode()
    about = [kind.name, max_length, list(classes), packed, code_hash([type(kind)])]
    try:
        key = digest.of_value([split_hash(split), tokenizer_hash(tokenizer), about])
    except TypeError:  # rows of a plugin that have no hash
        return encode()

    def write(folder: Path, made: Encoded) -> dict[str, Any]:
        return _write(folder, made, split)

    def read(folder: Path, content: Mapping[str, Any]) -> Encoded:
        return _read(folder, content, split)

    return made_once(cache_entry(ROOM, f"tokens-{key}"), encode, write, read)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash of all that determines the tokens of a text."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    own = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    sides = [tokenizer.padding_side, tokenizer.truncation_side]
    special = [str(tokenizer.special_tokens_map), tokenizer.model_input_names]
    return digest.of_value([own, sides, special, tokenizer.chat_template, type(tokenizer).__name__])


def _write(folder: Path, encoded: Encoded, split: Split) -> dict[str, Any]:
    values = {field.name: getattr(encoded, field.name) for field in fields(Encoded)}
    values |= {EXTRA + name: value for name, value in values.pop("extra").items()}
    return {
        name: _write_value(folder / name, value, split)
        for name, value in values.items()
        if value is not None
    }


def _write_value(path: Path, value: Any, split: Split) -> Any:
    """Write a value; return how, or the value itself if it is small.

    Raises:
        TypeError: It cannot be written.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of objects cannot be stored")
        np.ascontiguousarray(value).tofile(path)
        return {ARRAY: value.dtype.str, "shape": value.shape}
    if isinstance(value, (bool, int, str)):
        return value
    if value is split:
        return {SPLIT: True}
    if isinstance(value, Sequence):
        return {COLUMN: write_column(path, value), "tuple": isinstance(value, tuple)}
    raise TypeError(f"a {type(value).__name__} cannot be stored")


def _read(folder: Path, content: Mapping[str, Any], split: Split) -> Encoded:
    values = {name: _read_value(folder / name, how, split) for name, how in content.items()}
    extra = {name: value for name, value in values.items() if name.startswith(EXTRA)}
    own = {name: value for name, value in values.items() if name not in extra}
    absent = dict.fromkeys(("type_ids", "labels"))
    found = {name.removeprefix(EXTRA): value for name, value in extra.items()}
    return Encoded(**{**absent, **own, "extra": found})


def _read_value(path: Path, how: Any, split: Split) -> Any:
    if not isinstance(how, dict):
        return how
    if ARRAY in how:
        shape = tuple(how["shape"])
        empty = 0 in shape
        return np.zeros(shape, how[ARRAY]) if empty else np.memmap(path, how[ARRAY], "r", 0, shape)
    if COLUMN in how:
        column = StoredColumn.load(path, how[COLUMN])
        return tuple(column) if how["tuple"] else column
    return split
