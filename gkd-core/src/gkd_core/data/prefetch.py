"""Batches made in another thread while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")

DEPTH = 2
"""Number of items made ahead."""

_END = object()


def ahead(items: Iterable[Item]) -> Generator[Item]:
    """Yield the same items in the same order, while a thread makes the next ones.

    A single thread makes all of them, so that an item may depend on those before it. An exception
    is raised where its item would have been yielded. Closing the generator ends the thread.

    Args:
        items: The items; making one must not depend on what the caller does with earlier ones.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: deque[Future[object]] = deque()
        try:
            for _ in range(DEPTH):
                waiting.append(pool.submit(next, source, _END))
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, source, _END))
                yield cast(Item, item)
        finally:
            for future in waiting:
                future.cancel()
