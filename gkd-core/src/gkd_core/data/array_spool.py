"""`ArraySpool`: takes an array part by part; a large one is in a file without a name."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gkd_core.data.cache import Room, cache_dir, warn_unwritable

ROOM: Room = "rows"
"""The part of the cache with rows."""

IN_MEMORY = 2**24
"""Bytes of an array that are kept in memory; where there are more, as many at once are written."""


class ArraySpool:
    """Takes the parts of an array along its first axis.

    Args:
        dtype: Data type of the array.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[NDArray[Any]] = []
        self._waiting = 0
        self._shape: tuple[int, ...] = ()
        self._file: IO[bytes] | None = None
        self._whole = 0

    def add(self, part: NDArray[Any]) -> None:
        """Take a part."""
        self._parts.append(part.astype(self._dtype, copy=False))
        self._shape = part.shape[1:]
        self._waiting += self._parts[-1].nbytes
        if self._waiting >= IN_MEMORY:
            self._write()

    def array(self) -> NDArray[Any]:
        """Return the array; its file goes when nobody reads it any more."""
        empty: NDArray[Any] = np.zeros((0, *self._shape), self._dtype)
        if self._file is None or not self._whole:
            return np.concatenate([empty, *self._parts])
        self._write()
        count = self._whole // self._dtype.itemsize
        written: NDArray[Any] = np.memmap(self._file, self._dtype, "r", shape=(count,))
        written = written.reshape(-1, *self._shape)
        return np.concatenate([written, *self._parts]) if self._parts else written

    def _write(self) -> None:
        """Write the parts that wait; what the disk does not take stays in memory."""
        self._waiting = 0
        try:
            if self._file is None:
                folder = cache_dir() / ROOM
                folder.mkdir(parents=True, exist_ok=True)
                self._file = unnamed_file(folder, self)
            self._file.seek(self._whole)  # a disk that was full may have taken a part of one
            while self._parts:
                write_whole(self._file, self._parts[0].tobytes())
                self._whole += self._parts.pop(0).nbytes
        except OSError as error:
            warn_unwritable(error)


def unnamed_file(folder: Path, owner: object) -> IO[bytes]:
    """Return a file without a name, which is closed with its owner; what is mapped of it stays."""
    file: IO[bytes] = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it outlives the call
    weakref.finalize(owner, file.close)
    return file


def write_whole(file: IO[bytes], content: bytes) -> None:
    """Write bytes into a file without a buffer.

    Raises:
        OSError: The disk cannot take all of them.
    """
    if file.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
