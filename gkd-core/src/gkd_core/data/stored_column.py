"""`StoredColumn`: the values of a column on disk, mapped into memory and made when read."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from gkd_core import digest
from gkd_core.data.array_spool import unnamed_file, write_whole
from gkd_core.data.mapped_memory import release

CHUNK = 10_000
"""Values that are made at once where all of a column are read."""

TEXT, JSON = b"t", b"j"
"""First byte of a value: what follows is a text in UTF-8, or JSON. A missing value has no bytes."""

SHORT = 8
"""Bytes of numbers that are not read again each time."""

NUMBERS = tuple(b"%d" % digit for digit in range(10))

TUPLE = "\0tuple"
"""Name of the only value of an object that stands for a tuple, which JSON has not."""


class StoredColumn(Sequence[Any]):
    """The values of a column, or some of them in any order.

    Args:
        content: The bytes of all values, one after the other.
        starts: Where each begins and the last ends, int64 `[N + 1]`.
        content_hash: A hash of the values; empty if it is not known.
        rows: Which values these are, int64; None means all.
    """

    def __init__(
        self,
        content: mmap.mmap | bytes,
        starts: NDArray[np.int64],
        content_hash: str = "",
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._content = content
        self._starts = starts
        self._hash = content_hash
        self._rows = rows

    @classmethod
    def load(cls, path: Path, content_hash: str) -> StoredColumn:
        """Return a column in two files, as `write_column` writes them.

        Raises:
            OSError: They cannot be read.
            ValueError: They do not belong together.
        """
        starts = np.memmap(starts_of(path), np.int64, "r")
        with path.open("rb") as file:
            content = _mapped(file)
        if len(content) != starts[-1]:
            raise ValueError(f"{path.name} has {len(content)} bytes, not {starts[-1]}")
        return cls(content, starts, content_hash)

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self.take(np.arange(*index.indices(len(self)))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self)
        row = row if self._rows is None else int(self._rows[row])
        return _decoded(self._content[self._starts[row] : self._starts[row + 1]])

    def __iter__(self) -> Iterator[Any]:
        return map(_decoded, self.encoded())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values as numpy makes an array of them."""
        return np.array(list(self), dtype)

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each value."""
        content = self._content
        for start in range(0, len(self), CHUNK):
            rows: Any = slice(start, min(start + CHUNK, len(self)))
            rows = np.arange(rows.start, rows.stop) if self._rows is None else self._rows[rows]
            first, last = self._starts[rows].tolist(), self._starts[rows + 1].tolist()
            yield from (content[a:b] for a, b in zip(first, last, strict=True))
            release(content)

    @property
    def content_hash(self) -> str:
        """A hash of the values and of their order; empty if it is not known."""
        if self._rows is None or not self._hash:
            return self._hash
        return digest.of_bytes([self._hash.encode(), self._rows.tobytes()])

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> StoredColumn:
        """Return some of the values."""
        chosen = np.asarray(rows, np.int64)
        own = chosen if self._rows is None else self._rows[chosen]
        return StoredColumn(self._content, self._starts, self._hash, own)


class ColumnSpool:
    """Takes the values of a column, which it keeps in a file without a name.

    Args:
        folder: Where the file is.
    """

    def __init__(self, folder: Path) -> None:
        self._file = unnamed_file(folder, self)
        self._sizes: list[NDArray[np.int64]] = []

    def add(self, values: Iterable[Any]) -> None:
        """Take some values, all or none.

        Raises:
            OSError: The disk cannot take them.
            TypeError: One cannot be stored.
        """
        encoded = list(_encoded(values))
        content = b"".join(encoded)
        write_whole(self._file, content)
        self._sizes.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def column(self) -> StoredColumn:
        """Return the values; the file goes when nobody reads them any more."""
        sizes = np.concatenate([np.zeros(1, np.int64), *self._sizes])
        return StoredColumn(_mapped(self._file), np.cumsum(sizes))


def write_column(path: Path, values: Sequence[Any]) -> str:
    """Write a column into a file, and where its values begin into another.

    Returns:
        A hash of the values.

    Raises:
        OSError: They cannot be written.
        TypeError: One cannot be stored.
    """
    sizes = np.zeros(len(values) + 1, np.int64)
    with path.open("wb") as file:
        for place, value in enumerate(_encoded(values), 1):
            sizes[place] = file.write(value)
    np.cumsum(sizes).tofile(starts_of(path))
    return digest.of_files([path, starts_of(path)])


def starts_of(path: Path) -> Path:
    """Return the file that says where the values of a column begin."""
    return path.with_name(f"{path.name}.starts")


def encode_value(value: Any) -> bytes:
    """Return the bytes of a value.

    Raises:
        TypeError: It is no text, number, list, tuple or mapping of names.
    """
    if value is None:
        return b""
    if type(value) is str:
        return TEXT + value.encode("utf-8", "surrogatepass")
    if type(value) is int:
        return JSON + b"%d" % value
    return JSON + json.dumps(_plain(value), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _encoded(values: Iterable[Any]) -> Iterator[bytes]:
    """Yield the bytes of each value."""
    return values.encoded() if isinstance(values, StoredColumn) else map(encode_value, values)


def _decoded(content: bytes) -> Any:
    if not content:
        return None
    if len(content) <= SHORT and content[1:2] in NUMBERS and content[:1] == JSON:
        return _number(content)
    text = content[1:].decode("utf-8", "surrogatepass")
    if content[:1] == TEXT:
        return text
    return json.loads(text, object_hook=_restored if "\\u0000tuple" in text else None)


@lru_cache(4096)
def _number(content: bytes) -> int | float:
    """Return a number of few digits, such as the id of a class."""
    found: int | float = json.loads(content[1:])
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value) is list:
        return [_plain(each) for each in value]
    if type(value) is tuple:
        return {TUPLE: [_plain(each) for each in value]}
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _plain(each) for name, each in value.items()}
    raise TypeError(f"a {type(value).__name__} cannot be stored")


def _restored(value: dict[str, Any]) -> Any:
    return tuple(value[TUPLE]) if value.keys() == {TUPLE} else value


def _mapped(file: IO[bytes]) -> mmap.mmap | bytes:
    """Return the content of a file; an empty one cannot be mapped."""
    file.seek(0, 2)
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
