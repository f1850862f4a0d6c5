"""Some of the rows that a model reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.encode import CHUNK, TEXTS, Encoded
from gkd_core.data.row_joiner import ARRAYS, RowJoiner


def some_rows(encoded: Encoded, kept: NDArray[np.bool_]) -> Encoded:
    """Return some of the rows, which are conversations or answers to prompts.

    Args:
        encoded: The rows, each with the text that it is of.
        kept: Whether each row is kept, `[N]`.
    """
    sources = encoded.sources
    return replace(
        _taken(encoded, kept),
        sources=None if sources is None else sources[kept],
        extra={**encoded.extra, TEXTS: encoded.extra[TEXTS][kept]},
    )


def _taken(encoded: Encoded, kept: NDArray[np.bool_]) -> Encoded:
    """Return the tokens of some rows, part by part: those of many rows are in files."""
    made = RowJoiner()
    for start in range(0, len(encoded), CHUNK):
        rows = slice(start, start + CHUNK)
        lengths, own = encoded.lengths[rows], kept[rows]
        first = encoded.offsets[start]
        place, tokens = slice(first, first + lengths.sum()), np.repeat(own, lengths)
        values = {name: getattr(encoded, name) for name in ARRAYS}
        arrays = {name: v[place][tokens] for name, v in values.items() if v is not None}
        made.extend(lengths[own].tolist(), arrays)
    columns = made.columns() | {"num_truncated": _num_truncated(encoded, kept)}
    return replace(encoded, **columns)


def _num_truncated(encoded: Encoded, kept: NDArray[np.bool_]) -> int:
    """Return how many of the rows that are kept are truncated: others are not counted any more.

    A row that is not kept counts as truncated if it is as long as a row may be.
    """
    if not encoded.num_truncated:
        return 0
    full = encoded.lengths == encoded.lengths.max()
    return max(0, encoded.num_truncated - int((full & ~kept).sum()))
