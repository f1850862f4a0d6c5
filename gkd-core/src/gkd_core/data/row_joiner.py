"""`RowJoiner`: joins tokenized rows, which come part by part, into the arrays of `Encoded`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.array_spool import ArraySpool


class TokenizedRow(NamedTuple):
    """A tokenized row.

    Attributes:
        ids: The token ids, int32.
        type_ids: The segment ids likewise, or None.
        block: The text that a block is from; None if nobody needs it.
        byte_offsets: Start and end of each token in the text, int32 `[T, 2]`, or None.
        text: Number of the text that a block is from.
        unpreceded: Bytes of tokens that no token precedes in their block.
        learned: Whether each token is learned, or None if all are.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None
    block: str | None = None
    byte_offsets: NDArray[np.int32] | None = None
    text: int = 0
    unpreceded: int = 0
    learned: NDArray[np.bool_] | None = None


ARRAYS = {"ids": np.int32, "type_ids": np.int32, "learned": np.bool_, "byte_offsets": np.int32}
"""The values of a row for each token, and their data types."""


class RowJoiner:
    """Joins tokenized rows, which come part by part."""

    def __init__(self) -> None:
        self._arrays: dict[str, ArraySpool] = {}
        self._lengths = ArraySpool(np.int64)
        self._blocks: list[str] = []
        self._cut = 0

    def add(self, rows: Sequence[TokenizedRow], cut: int = 0) -> None:
        """Take rows, and the number of those that are truncated."""
        self._blocks += [row.block for row in rows if row.block is not None]
        values = {
            name: [own for row in rows if (own := getattr(row, name)) is not None]
            for name in ARRAYS
        }
        arrays = {name: np.concatenate(found) for name, found in values.items() if found}
        self.extend([len(row.ids) for row in rows], arrays, cut)

    def extend(
        self, lengths: Sequence[int], arrays: Mapping[str, NDArray[Any]], cut: int = 0
    ) -> None:
        """Take rows whose values are joined.

        Args:
            lengths: Number of tokens of each row.
            arrays: The values of all rows, one after the other, by their name in `ARRAYS`.
            cut: Number of truncated rows.
        """
        self._lengths.add(np.array(lengths, np.int64))
        self._cut += cut
        for name, values in arrays.items():
            self._arrays.setdefault(name, ArraySpool(ARRAYS[name])).add(values)

    def columns(self) -> dict[str, Any]:
        """Return the fields of `Encoded` that follow from the rows."""
        arrays = {name: spool.array() for name, spool in self._arrays.items()}
        return {
            "ids": np.zeros(0, np.int32),
            "type_ids": None,
            **arrays,
            "offsets": np.cumsum(np.append(0, self._lengths.array())),
            "num_truncated": self._cut,
            "blocks": self._blocks or None,
        }
