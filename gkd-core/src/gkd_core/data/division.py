"""How rows are divided into parts that are neither too many nor too large."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

INFINITE = float("inf")


def divide(sizes: Iterable[float], count: int, limit: float = INFINITE) -> list[range]:
    """Return the places of the items in each part, in their order.

    Args:
        sizes: The size of each item.
        count: Most items of a part.
        limit: Most that they take together; an item that takes more is a part of its own.
    """
    parts: list[range] = []
    start = end = 0
    taken = 0.0
    for end, size in enumerate(sizes):
        if end > start and (end - start == count or taken + size > limit):
            parts.append(range(start, end))
            start, taken = end, 0.0
        taken += size
        end += 1
    return [*parts, range(start, end)] if end > start else parts


def longest_first(
    lengths: NDArray[np.int64],
    count: int,
    sizes: NDArray[np.float64] | None = None,
    limit: float = INFINITE,
) -> list[list[int]]:
    """Return the rows of each batch, the longest first.

    Args:
        lengths: Tokens of each row.
        count: Most rows of a batch.
        sizes: The size of each row, if batches are bounded by these, too.
        limit: Most that the rows of a batch take; one that takes more is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    own = np.zeros(len(order)) if sizes is None else sizes[order]
    parts = divide(own.tolist(), count, limit)
    return [order[part.start : part.stop].tolist() for part in parts]
