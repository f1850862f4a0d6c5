"""Collate rows into padded micro-batches and, in language modeling, create the labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.data.byte_offsets import NOWHERE
from gkd_core.data.encode import Encoded
from gkd_core.data.words import Words
from gkd_core.errors import DataError
from gkd_core.kinds.kind import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVALUATION_EPOCH = 2**32
"""The epoch number that all evaluations use for masking; training never reaches it."""


class Collator:
    """Builds micro-batches.

    Rows are padded to the longest one, on the tokenizer's padding side, with its padding token (its
    end token if it has none). The masking of a row in `masked-lm` depends only on the seed, the
    epoch and the row, never on its micro-batch: a `mask_share` of each row's tokens, at least one,
    is predicted; 80% of these become the mask token, 10% a random token (Devlin et al., NAACL
    2019).

    Args:
        tokenizer: The tokenizer that encoded the rows.
        kind: Kind of the task.
        mask_share: Share of tokens that `masked-lm` predicts.
        seed: Seed for masking.

    Raises:
        DataError: The tokenizer lacks a required token: padding or end, or mask.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kind: Kind, mask_share: float, seed: int
    ) -> None:
        pad = tokenizer.pad_token_id
        self.pad_id: int = tokenizer.eos_token_id if pad is None else pad
        if self.pad_id is None:
            raise DataError(
                "the tokenizer has neither a padding token nor an end token; set its `pad_token`"
            )
        if kind == "masked-lm" and tokenizer.mask_token_id is None:
            raise DataError(
                "task.kind is masked-lm, but the tokenizer has no mask token; use causal-lm, or a "
                "model trained for masked language modeling"
            )
        self.kind = kind
        self.mask_share = mask_share
        self.seed = seed
        self._tokenizer = tokenizer
        self._pad_type_id: int = tokenizer.pad_token_type_id
        self._left = tokenizer.padding_side == "left"
        self._mask_id = tokenizer.mask_token_id
        self._vocabulary = len(tokenizer)
        self._special = np.array(tokenizer.all_special_ids, np.int64)

    def collate(
        self,
        encoded: Encoded,
        rows: Sequence[int],
        epoch: int,
        width: int = 0,
        hidden: Sequence[NDArray[np.bool_]] | None = None,
    ) -> Batch:
        """Return the micro-batch of `rows`.

        Args:
            encoded: The split.
            rows: Row indices, at least one.
            epoch: Completed passes over the training data; `EVALUATION_EPOCH` outside training.
            width: Minimum width, in tokens, to which rows are padded.
            hidden: Tokens of each row that `masked-lm` predicts, all of which become the mask
                token; drawn if None.
        """
        made = [encoded.row(row) for row in rows]
        ids = [row["input_ids"].astype(np.int64) for row in made]
        width = max(width, *map(len, ids))
        words = self._padded(list(map(self._words.number, ids)), -1, width)
        labels: torch.Tensor | None = None
        if self.kind == "masked-lm":
            if hidden is None:
                masked = [self._masked(*pair, epoch) for pair in zip(ids, rows, strict=True)]
            else:
                masked = [self._hidden(*pair) for pair in zip(ids, hidden, strict=True)]
            ids = [tokens for tokens, _ in masked]
            labels = self._padded([targets for _, targets in masked], IGNORE, width)
        elif self.kind == "causal-lm":
            # Shifted here: the label at a position is the next token.
            labels = self._padded([np.append(row[1:], IGNORE) for row in ids], IGNORE, width)
        elif encoded.labels is not None:
            labels = torch.from_numpy(encoded.labels[list(rows)])
        inputs = {
            "input_ids": self._padded(ids, self.pad_id, width),
            "attention_mask": self._padded([np.ones_like(row) for row in ids], 0, width),
        }
        if encoded.type_ids is not None:
            types = [row["token_type_ids"] for row in made]
            inputs["token_type_ids"] = self._padded(types, self._pad_type_id, width)
        located = None
        if encoded.byte_offsets is not None:
            located = self._padded([row["byte_offsets"] for row in made], NOWHERE, width)
        numbers = torch.tensor(rows, dtype=torch.int64)
        return Batch(inputs, labels, numbers, words=words, byte_offsets=located)

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer)

    def _padded(self, rows: Sequence[NDArray[Any]], value: int, width: int) -> torch.Tensor:
        filled = np.full((len(rows), width, *rows[0].shape[1:]), value, np.int64)
        for line, row in zip(filled, rows, strict=True):
            line[slice(width - len(row), width) if self._left else slice(len(row))] = row
        return torch.from_numpy(filled)

    def _hidden(
        self, ids: NDArray[np.int64], hidden: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the token ids of a row with the hidden ones masked, and the labels."""
        return np.where(hidden, self._mask_id, ids), np.where(hidden, ids, IGNORE)

    def _masked(
        self, ids: NDArray[np.int64], row: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the masked token ids and the labels of a row."""
        draw = np.random.default_rng([self.seed, epoch, row])
        free = draw.permutation(np.flatnonzero(~np.isin(ids, self._special)))
        chosen = free[: max(1, round(self.mask_share * len(free)))]
        labels = np.full_like(ids, IGNORE)
        labels[chosen] = ids[chosen]
        masked = ids.copy()
        fate = draw.random(len(chosen))
        masked[chosen[fate < 0.8]] = self._mask_id
        replaced = chosen[fate >= 0.9]
        masked[replaced] = draw.integers(self._vocabulary, size=len(replaced))
        return masked, labels
