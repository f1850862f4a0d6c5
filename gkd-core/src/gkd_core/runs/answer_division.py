"""Which rows a teacher is asked about at once, and whose answers are in one file of a cache.

Both follow from the rows and from the form of the answers alone: every process that writes a cache
divides it in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from gkd_core.data.division import INFINITE, divide, longest_first
from gkd_core.teachers.kept import ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gkd_core.data.encode import Encoded

BATCHES = 16
"""Batches in a shard. Of the first of each, the stored values are compared with the computed."""

SHARD_BYTES = 2**28
"""Bytes of answers in a shard: what is lost when a process is killed, and what each one holds in
memory, up to three times while it is written. 1,024 rows of 512 tokens with the attention of two
layers of 12 heads would be 12 GiB."""

ShardRows: TypeAlias = Sequence[Sequence[int]]
"""The rows of each batch of a shard."""


def shards(encoded: Encoded, sizes: NDArray[np.float64], most: int | None) -> list[ShardRows]:
    """Return the shards of a cache, the longest rows first.

    Args:
        encoded: The rows.
        sizes: Bytes of the answers about each, `[N]`.
        most: Bytes of a shard, in which there is at least one row; None for any number.
    """
    limit = INFINITE if most is None else most
    batches = longest_first(encoded.lengths, ROWS, sizes, limit)
    whole = (float(sizes[rows].sum()) for rows in batches)
    return [batches[part.start : part.stop] for part in divide(whole, BATCHES, limit)]
