"""How rows are divided into parts that are neither too many nor too large."""

from __future__ import annotations

from collections.abc import Iterable

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
