"""Hashes of content: SHA-256, as hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SHORT = 16
"""Digits of a hash that names something among the things of one user."""

BLOCK = 2**20


def of_bytes(parts: Iterable[bytes]) -> str:
    """Return the hash of bytes, in 64 digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def of_value(value: Any) -> str:
    """Return the short hash of what JSON can hold; anything else counts as its text."""
    return of_bytes([json.dumps(value, sort_keys=True, default=str).encode()])[:SHORT]


def of_files(paths: Iterable[Path]) -> str:
    """Return the short hash of the names and the content of files, whatever their order."""
    return of_bytes(part for path in sorted(paths) for part in _content(path))[:SHORT]


def of_each_file(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the hash of the content of each file, in 64 digits."""
    found = dict.fromkeys(paths, "")
    large = [path for path in found if path.stat().st_size > BLOCK]
    with ThreadPoolExecutor() as pool:  # hashing large blocks releases the GIL
        found |= zip(large, pool.map(_of_file, large), strict=True)
    return {path: known or _of_file(path) for path, known in found.items()}


def of_each_named(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the hash of the content of each file by its name, in 64 digits."""
    hashes = of_each_file(files.values())
    return {name: hashes[files[name]] for name in sorted(files)}


def _of_file(path: Path) -> str:
    return of_bytes(_blocks(path))


def _content(path: Path) -> Iterator[bytes]:
    yield f"{path.name} {path.stat().st_size}\n".encode()
    yield from _blocks(path)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
