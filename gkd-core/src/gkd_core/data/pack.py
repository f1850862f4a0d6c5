"""Packing: several rows, one after the other, in one block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gkd_core.data.encode import Encoded


def pack(encoded: Encoded, size: int, whole: bool) -> Encoded:
    """Return rows of language modeling as blocks; each token has its place in its own row.

    Models tell the rows of a block apart by these places, so that no token sees another row.

    Args:
        encoded: The rows, of at most `size` tokens each.
        size: Tokens of a block.
        whole: Whether rows stay whole, in the block where they leave the least room. Otherwise they
            are cut where a block is full, and every block but the last is.
    """
    lengths = np.diff(encoded.offsets)
    blocks = best_fit(lengths.tolist(), size) if whole else [list(range(len(lengths)))]
    order = [row for block in blocks for row in block]
    places = [np.arange(encoded.offsets[row], encoded.offsets[row + 1]) for row in order]
    taken = np.concatenate(places)
    if whole:
        ends = np.cumsum([sum(int(lengths[row]) for row in block) for block in blocks])
    else:
        ends = np.minimum(np.arange(size, len(taken) + size, size), len(taken))
    starts = np.zeros(len(taken), np.int64)
    for begin in (np.cumsum([0, *map(len, places)])[:-1], ends[:-1]):
        starts[begin] = begin
    positions = np.arange(len(taken)) - np.maximum.accumulate(starts)
    return replace(
        encoded,
        ids=encoded.ids[taken],
        type_ids=None if encoded.type_ids is None else encoded.type_ids[taken],
        offsets=np.concatenate([[0], ends]).astype(np.int64),
        learned=None if encoded.learned is None else encoded.learned[taken],
        positions=positions.astype(np.int32),
        num_packed=len(lengths),
        sources=None,
        extra={},
    )


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the rows of each block: longest first, each where it leaves the least room.

    Args:
        lengths: Tokens of each row, at most `size`.
        size: Tokens of a block.
    """
    blocks: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r is set if a block has room for r tokens
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = rooms >> lengths[row]
        if fitting:
            room = lengths[row] + (fitting & -fitting).bit_length() - 1
            block = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, block = size, len(blocks)
            blocks.append([])
        blocks[block].append(row)
        left = room - lengths[row]
        if left:
            with_room[left].append(block)
            rooms |= 1 << left
    return blocks
