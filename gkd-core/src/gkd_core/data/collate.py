"""Collate rows into padded micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gkd_core.contract.batch import Batch
from gkd_core.data.byte_offsets import NOWHERE
from gkd_core.data.encode import Encoded
from gkd_core.data.words import Words
from gkd_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.kinds.task_kind import TaskKind

EVALUATION_EPOCH = 2**32
"""The epoch number that all evaluations use for masking; training never reaches it."""


class Collator:
    """Builds micro-batches.

    Rows are padded to the longest one, on the tokenizer's padding side, with its padding token (its
    end token if it has none). What the labels are is up to the kind of task.

    Args:
        tokenizer: The tokenizer that encoded the rows.
        kind: Kind of the task.
        mask_share: Share of tokens that `masked-lm` predicts.
        seed: Seed for masking.

    Attributes:
        pad_id: The padding token.
        mask_id: The mask token; None if the tokenizer has none.
        special: Ids of the special tokens, int64.
        vocabulary: Number of tokens.
        pads_left: Whether padding stands before the tokens.

    Raises:
        DataError: The tokenizer lacks a required token: padding or end, or one that the kind needs.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kind: TaskKind, mask_share: float, seed: int
    ) -> None:
        pad = tokenizer.pad_token_id
        self.pad_id: int = tokenizer.eos_token_id if pad is None else pad
        if self.pad_id is None:
            raise DataError(
                "the tokenizer has neither a padding token nor an end token; set its `pad_token`"
            )
        kind.check_tokenizer(tokenizer)
        self.kind = kind
        self.mask_share = mask_share
        self.seed = seed
        self._tokenizer = tokenizer
        self._pad_type_id: int = tokenizer.pad_token_type_id
        self.pads_left: bool = tokenizer.padding_side == "left"
        self.mask_id: int | None = tokenizer.mask_token_id
        self.vocabulary = len(tokenizer)
        self.special = np.array(tokenizer.all_special_ids, np.int64)

    def collate(self, encoded: Encoded, rows: Sequence[int], epoch: int, width: int = 0) -> Batch:
        """Return the micro-batch of `rows`.

        Args:
            encoded: The split.
            rows: Row indices, at least one.
            epoch: Completed passes over the training data; `EVALUATION_EPOCH` outside training.
            width: Minimum width, in tokens, to which rows are padded.
        """
        made = [encoded.row(sequence) for sequence in encoded.sequences(rows)]
        ids = [row["input_ids"].astype(np.int64) for row in made]
        width = max(width, *map(len, ids))
        words = self.padded(list(map(self._words.number, ids)), -1, width)
        uncollated = Uncollated(self, encoded, rows, ids, epoch, width)
        unpadded, labels = self.kind.collate(uncollated)
        inputs = {
            "input_ids": self.padded(unpadded, self.pad_id, width),
            "attention_mask": self.padded([np.ones_like(row) for row in unpadded], 0, width),
        }
        if encoded.type_ids is not None:
            types = [row["token_type_ids"] for row in made]
            inputs["token_type_ids"] = self.padded(types, self._pad_type_id, width)
        if encoded.positions is not None:
            places = [encoded.positions[encoded.part(row)] for row in rows]
            inputs["position_ids"] = self.padded(places, 0, width)
        inputs |= self.kind.mark(uncollated)
        located = None
        if encoded.byte_offsets is not None:
            located = self.padded([row["byte_offsets"] for row in made], NOWHERE, width)
        numbers = torch.tensor(rows, dtype=torch.int64)
        sources = None if encoded.sources is None else torch.from_numpy(encoded.sources)[numbers]
        return Batch(
            inputs,
            labels,
            numbers,
            words=words,
            loss_mask=self._loss_mask(encoded, rows, width),
            byte_offsets=located,
            output=self.kind.output,
            data_sources=sources,
        )

    def _loss_mask(self, encoded: Encoded, rows: Sequence[int], width: int) -> torch.Tensor | None:
        """Return the mask of the tokens that are learned, bool `[B, S]`; None if all are."""
        if encoded.learned is None:
            return None
        counts = [encoded.learned[encoded.part(row)] for row in rows]
        return self.padded(counts, 0, width).bool()

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer)

    def padded(self, rows: Sequence[NDArray[Any]], value: int, width: int) -> torch.Tensor:
        """Return rows of different lengths as int64 `[B, width, ...]`, padded with a value."""
        filled = np.full((len(rows), width, *rows[0].shape[1:]), value, np.int64)
        for line, row in zip(filled, rows, strict=True):
            line[slice(width - len(row), width) if self.pads_left else slice(len(row))] = row
        return torch.from_numpy(filled)


@dataclass(frozen=True)
class Uncollated:
    """The rows of a micro-batch before they are padded, as a `TaskKind` collates them.

    Attributes:
        collator: The collator, with the facts of the tokenizer.
        encoded: The split.
        numbers: Row indices.
        ids: The token ids of each sequence, int64.
        epoch: Completed passes over the training data.
        width: Width to which rows are padded.
    """

    collator: Collator
    encoded: Encoded
    numbers: Sequence[int]
    ids: Sequence[NDArray[np.int64]]
    epoch: int
    width: int

    def padded(self, rows: Sequence[NDArray[Any]], value: int) -> torch.Tensor:
        """Return values per token, padded like the token ids: int64 `[B, S]`."""
        return self.collator.padded(rows, value, self.width)
