"""Rows as models with another tokenizer than the student's read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.contract.task import Split
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.encode import TEXTS, Encoded, encode_samples
from gkd_core.data.some_rows import some_rows
from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.kinds.task_kind import TaskKind


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

        Args:
            batch: The batch as the student reads it.
            together: Rows of all ranks, which are padded to the same width.
        """
        rows, width = batch.rows.tolist(), int(self.encoded.lengths[together].max())
        view = self.collator.collate(self.encoded, rows, EVALUATION_EPOCH, width)
        if self.collator.kind.masks:
            view = self._hide(view, batch)
        return replace(view, counted=batch.counted)

    def _hide(self, view: Batch, batch: Batch) -> Batch:
        """Return the view with mask tokens where its text is hidden in the batch."""
        collator, rows = self.collator, view.rows.tolist()
        ids = [self.encoded.row(row)["input_ids"] for row in rows]
        plain = collator.padded(ids, collator.pad_id, view.mask.shape[1])
        hidden = _overlap(view, batch)
        assert collator.mask_id is not None, "checked with the tokenizer"
        inputs = {**view.inputs, "input_ids": plain.masked_fill(hidden, collator.mask_id)}
        return replace(view, inputs=inputs, labels=plain.masked_fill(~hidden, IGNORE))


def encode_again(
    kind: TaskKind,
    split: Split,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    classes: Sequence[str] = (),
) -> Encoded:
    """Tokenize rows for a model with another tokenizer.

    Args:
        kind: Kind of the task.
        split: The texts.
        encoded: The split as the student reads it, with `byte_offsets`.
        tokenizer: The other tokenizer.
        max_length: Maximum tokens of a row; longer ones are truncated.
        classes: The task's classes.

    Raises:
        ConfigError: The kind makes rows of the tokens, and others of these.
    """
    if encoded.blocks is not None:
        blocks = Split(encoded.blocks, byte_offsets=True)
        return encode_samples(blocks, tokenizer, max_length, encoded.labels)
    found = kind.encode(split, tokenizer, max_length, classes)
    texts, own = found.extra.get(TEXTS), encoded.extra.get(TEXTS)
    if texts is not None and own is not None and not np.array_equal(texts, own):
        found = _of_texts(found, own)
    if len(found) != len(encoded):
        raise ConfigError(
            f"task.kind = '{kind}' cuts long texts by their tokens, so a teacher with another "
            f"tokenizer reads {len(found)} rows where the student reads {len(encoded)}. Raise "
            "task.max_length, or choose a student of the teacher's family"
        )
    return found


def _of_texts(found: Encoded, own: NDArray[np.int64]) -> Encoded:
    """Return the rows of the texts that the student learns from; it may have cut others.

    Raises:
        ConfigError: One of them has lost its answer in these tokens.
    """
    lost = len(np.setdiff1d(own, found.extra[TEXTS]))
    if lost:
        raise ConfigError(
            f"in {lost:,} conversations, no token of an answer is left within task.max_length for "
            "the teacher's tokenizer, while the student's has some. Raise task.max_length"
        )
    return some_rows(found, np.isin(found.extra[TEXTS], own))


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


def _overlap(view: Batch, batch: Batch) -> Tensor:
    """Return the mask of a view's tokens that share a byte with a predicted token, `[B, S]`."""
    assert batch.labels is not None, "the kind makes labels of hidden tokens"
    assert batch.byte_offsets is not None, "encoded with them where tokenizers differ"
    assert view.byte_offsets is not None, "encoded with them"
    predicted = (batch.labels != IGNORE)[..., None]
    # No byte lies between -1 and -1: other tokens of the batch overlap with none.
    spans = torch.where(predicted, batch.byte_offsets, -1).unsqueeze(1)
    tokens = view.byte_offsets.unsqueeze(2)
    starts, ends = torch.maximum(tokens, spans)[..., 0], torch.minimum(tokens, spans)[..., 1]
    return (starts < ends).any(-1)
