"""The rows of a task, read from its files once: the next run maps them into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gkd_core import digest
from gkd_core.contract.task import COLUMNS, SPLITS, Split, TaskData
from gkd_core.data.array_spool import ROOM
from gkd_core.data.assemble import hash_rows
from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.data.stored_column import StoredColumn, encode_value, write_column
from gkd_core.data.stored_folder import made_once

LARGE = 2**22
"""Bytes of the files of a task whose rows are kept; smaller ones are read as quickly again."""

FLAGS = tuple(field.name for field in fields(Split) if field.name not in COLUMNS)
"""The fields of a split that have one value for all rows."""


def stored_rows(
    files: Mapping[str, Path] | None,
    about: Sequence[Any],
    classes: Sequence[type],
    load: Callable[[], TaskData],
) -> TaskData:
    """Return the rows of a task, from the cache if they are there.

    Args:
        files: The files that the rows are read from, by any name; None if there are others.
        about: All else that the rows depend on, as JSON can hold it.
        classes: Classes that read them.
        load: Reads and checks them.
    """
    if not files or sum(path.stat().st_size for path in files.values()) < LARGE:
        return load()
    key = digest.of_value([digest.of_each_named(files), list(about), code_hash(classes)])
    return made_once(cache_entry(ROOM, key), load, _write, _read)


def code_hash(classes: Sequence[type] = ()) -> str:
    """Return a hash of the code that makes rows and tokens.

    Args:
        classes: Classes of plugins that take part.
    """
    core = Path(__file__).parents[1]
    files = {path for room in ("contract", "data", "kinds") for path in core.glob(f"{room}/*.py")}
    modules = {base.__module__ for each in classes for base in each.__mro__}
    found = (getattr(sys.modules.get(name), "__file__", None) for name in modules)
    files |= {Path(file) for file in found if file is not None}
    names = ("numpy", "pyarrow", "tokenizers", "transformers")
    return digest.of_value([digest.of_files(files), [version(name) for name in names]])


def hash_split(kind: str, classes: Sequence[str], name: str, split: Split) -> str:
    """Return `hash_rows` of one split; of rows that are stored, it is in the cache, too."""
    columns = [getattr(split, column) for column in COLUMNS]
    if not all(column is None or isinstance(column, StoredColumn) for column in columns):
        return hash_rows(kind, classes, {name: split})
    key = digest.of_value([split_hash(split), kind, list(classes), name])
    path = cache_entry(ROOM, f"hash-{key}.json")
    known = read_entry(path, str)
    if known is None:
        known = hash_rows(kind, classes, {name: split})
        write_entry(path, known)
    return known


def split_hash(split: Split) -> str:
    """Return a hash of the rows of a split; of a stored column, no value is read.

    Raises:
        TypeError: A value has no hash.
    """
    parts = []
    for name in COLUMNS:
        column = getattr(split, name)
        known = column.content_hash if isinstance(column, StoredColumn) else ""
        parts.append([name, known or (None if column is None else _hash_of(column))])
    return digest.of_value([parts, [getattr(split, name) for name in FLAGS]])


def _hash_of(column: Sequence[Any]) -> str:
    encoded = map(encode_value, column)
    return digest.of_bytes(part for value in encoded for part in (b"%d " % len(value), value))


def _write(folder: Path, data: TaskData) -> dict[str, Any]:
    splits = {name: getattr(data, name) for name in SPLITS}
    return {
        "splits": {
            name: _write_split(folder, name, split)
            for name, split in splits.items()
            if split is not None
        },
        "kind": data.kind,
        "classes": list(data.classes),
        "rows_hash": data.rows_hash,
        "source": data.source,
    }


def _write_split(folder: Path, name: str, split: Split) -> dict[str, Any]:
    columns = {column: getattr(split, column) for column in COLUMNS}
    hashes = {
        column: write_column(folder / f"{name}-{column}", values)
        for column, values in columns.items()
        if values is not None
    }
    return {"columns": hashes, "flags": {flag: getattr(split, flag) for flag in FLAGS}}


def _read(folder: Path, content: Mapping[str, Any]) -> TaskData:
    splits: dict[str, Split] = {}
    for name, split in content["splits"].items():
        columns: dict[str, Any] = {
            column: StoredColumn.load(folder / f"{name}-{column}", known)
            for column, known in split["columns"].items()
        }
        splits[name] = Split(**columns, **split["flags"])
    return TaskData(
        kind=content["kind"],
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=tuple(content["classes"]),
        rows_hash=content["rows_hash"],
        source=content["source"],
    )
