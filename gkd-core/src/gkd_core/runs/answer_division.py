"""Which rows a teacher is asked about at once, and whose answers are in one file of a cache.

Both follow from the rows and from the form of the answers alone: every process that writes a cache
divides it in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gkd_core.data.division import INFINITE, divide
from gkd_core.teachers.kept import ROWS

if TYPE_CHECKING:
    from gkd_core.data.encode import Encoded
    from gkd_core.teachers.answer_form import Size

BATCHES = 16
"""Batches in a shard. Of the first of each, the stored values are compared with the computed."""

SHARD_BYTES = 2**28
"""Bytes of answers in a shard: what is lost when a process is killed, and what each one holds in
memory, up to three times while it is written. 1,024 rows of 512 tokens with the attention of two
layers of 12 heads would be 12 GiB."""

ShardRows: TypeAlias = Sequence[Sequence[int]]
"""The rows of each batch of a shard."""


def shards(encoded: Encoded, size: Size, most: int | None) -> list[ShardRows]:
    """Return the shards of a cache, the longest rows first.

    Args:
        encoded: The rows.
        size: Bytes that their answers take.
        most: Bytes of a shard, in which there is at least one row; None for any number.
    """
    limit = INFINITE if most is None else most
    order = np.argsort(-encoded.lengths, kind="stable")
    sizes = size.of_rows(encoded)[order]
    batches = divide(sizes, ROWS, limit)
    whole = (float(sizes[batch.start : batch.stop].sum()) for batch in batches)
    return [
        [order[batch.start : batch.stop].tolist() for batch in batches[part.start : part.stop]]
        for part in divide(whole, BATCHES, limit)
    ]
