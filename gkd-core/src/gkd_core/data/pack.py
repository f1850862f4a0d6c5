"""Packing: several rows, one after the other, in one block."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.array_spool import ArraySpool
from gkd_core.data.encode import CHUNK, Encoded
from gkd_core.data.mapped_memory import release

MOVED = ("ids", "type_ids", "learned")
"""The values of each token that move with its row."""


def pack(encoded: Encoded, size: int, whole: bool) -> Encoded:
    """Return rows of language modeling as blocks; each token has its place in its own row.

    Models tell the rows of a block apart by these places, so that no token sees another row. Where
    tokens are in the text of their row is left out.

    Args:
        encoded: The rows, of at most `size` tokens each.
        size: Tokens of a block.
        whole: Whether rows stay whole, in the block where they leave the least room. Otherwise they
            are cut where a block is full, and every block but the last is.
    """
    if whole:
        order, counts = best_fit(np.diff(encoded.offsets), size)
        encoded = _in_order(encoded, order)
        ends = encoded.offsets[np.cumsum(counts)]
    else:
        total = encoded.offsets[-1]
        ends = np.append(np.arange(size, total, size), total)
    offsets = np.append(0, ends)
    return replace(
        encoded,
        offsets=offsets,
        positions=_counted(np.diff(np.union1d(encoded.offsets, offsets))),
        num_packed=len(encoded),
        byte_offsets=None,
        blocks=None,
        sources=None,
        extra={},
    )


def best_fit(lengths: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows in the order of their blocks, and how many each block has.

    The longest row comes first, and each goes where it leaves the least room.

    Args:
        lengths: Tokens of each row, at most `size`, int64 `[N]`.
        size: Tokens of a block.
    """
    order = np.argsort(-lengths, kind="stable")
    blocks = np.empty(len(order), np.int64)
    count, rooms = 0, 0  # bit r of `rooms` is set if a block has room for r tokens
    with_room: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
    for place, length in enumerate(map(int, lengths[order])):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            block = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, block = size, count
            count += 1
        blocks[place] = block
        left = room - length
        if left:
            with_room[left].append(block)
            rooms |= 1 << left
    return order[np.argsort(blocks, kind="stable")], np.bincount(blocks)


def _in_order(encoded: Encoded, order: NDArray[np.int64]) -> Encoded:
    """Return the tokens of rows in another order."""
    starts, lengths = encoded.offsets[order], np.diff(encoded.offsets)[order]
    values = {name: getattr(encoded, name) for name in MOVED}
    moved: dict[str, Any] = {
        name: _taken(own, starts, lengths) for name, own in values.items() if own is not None
    }
    return replace(encoded, **moved, offsets=np.cumsum(np.append(0, lengths)))


def _taken(
    values: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the values of rows that begin at `starts`, one after the other."""
    made = ArraySpool(values.dtype)
    for first, sizes in zip(_parts(starts), _parts(lengths), strict=True):
        made.add(values[np.repeat(first, sizes) + _numbers(sizes)])
        release(getattr(values, "_mmap", None))
    return made.array()


def _counted(sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the numbers from 0 for each of several sizes, one after the other."""
    made = ArraySpool(np.int32)
    for part in _parts(sizes):
        made.add(_numbers(part))
    return made.array()


def _numbers(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from 0 for each of a few sizes."""
    ends = np.cumsum(sizes)
    found: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
    return found


def _parts(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield values part by part."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
