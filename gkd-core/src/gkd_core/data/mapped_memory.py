"""Reading what is mapped from the disk once, without keeping it in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

PART = 2**22
"""Bytes of an array that are read at once."""


def parts_of(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array part by part along its first axis."""
    mapped = getattr(array, "_mmap", None)  # what a `np.memmap` and its parts are mapped from
    count = max(1, PART * max(1, len(array)) // max(1, array.nbytes))
    for start in range(0, len(array), count):
        yield array[start : start + count]
        release(mapped)


def release(content: object) -> None:
    """Let the system reclaim the memory of what was read; it is still on disk."""
    if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)
