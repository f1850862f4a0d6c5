"""Rows as models with another tokenizer than the student's read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.encode import Encoded


@dataclass(frozen=True)
class Reading:
    """The rows of a split in the tokens of another tokenizer.

    Attributes:
        models: Names of the models that share the tokenizer.
        encoded: The rows, in the order in which the student reads them.
        collator: Makes micro-batches of them.
    """

    models: tuple[str, ...]
    encoded: Encoded
    collator: Collator

    def view(self, batch: Batch, together: Sequence[int]) -> Batch:
        """Return the rows of a batch in the tokens of this tokenizer.

        In masked language modeling, it hides the text that the batch hides.

        Args:
            batch: The batch as the student reads it.
            together: Rows of all ranks, which are padded to the same width.
        """
        rows, lengths = batch.rows.tolist(), self.encoded.lengths
        hidden = None
        if self.collator.kind == "masked-lm":
            hidden = [
                _overlap(self.encoded.row(row)["byte_offsets"], spans)
                for row, spans in zip(rows, _hidden_spans(batch), strict=True)
            ]
        width = int(lengths[together].max())
        view = self.collator.collate(self.encoded, rows, EVALUATION_EPOCH, width, hidden)
        return replace(view, counted=batch.counted)


def with_views(batch: Batch, readings: Iterable[Reading], together: Sequence[int]) -> Batch:
    """Return a batch with the views of models that have another tokenizer.

    Args:
        batch: The batch as the student reads it.
        readings: How they read the rows of its split.
        together: Rows of all ranks, which are padded to the same width.
    """
    views: dict[str, Batch] = {}
    for reading in readings:
        views |= dict.fromkeys(reading.models, reading.view(batch, together))
    return replace(batch, views=views)


def _hidden_spans(batch: Batch) -> list[NDArray[np.int64]]:
    """Return the byte offsets of the tokens that each row predicts, `[N, 2]`."""
    assert batch.labels is not None, "masked language modeling makes its labels"
    assert batch.byte_offsets is not None, "encoded with them where tokenizers differ"
    return [
        spans[predicted].numpy()
        for spans, predicted in zip(batch.byte_offsets, batch.labels != IGNORE, strict=True)
    ]


def _overlap(tokens: NDArray[np.int32], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens `[T, 2]` share a byte with one of some spans `[N, 2]`."""
    starts, ends = np.maximum(tokens[:, :1], spans[:, 0]), np.minimum(tokens[:, 1:], spans[:, 1])
    overlapping: NDArray[np.bool_] = np.any(starts < ends, axis=1)
    return overlapping
