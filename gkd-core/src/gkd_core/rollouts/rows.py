"""Rows of a batch as prompts and continuations: split, and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.contract.batch import IGNORE, ROW_SOURCES, Batch, RowSource
from gkd_core.data.words import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowText:
    """What a row of a batch is replaced by.

    Attributes:
        prompt: Token ids of its prompt, int64.
        written: Token ids of what a model wrote, int64.
        log_drawn: The log-probability with which each of them was drawn, fp64; None if nobody asks
            for it.
    """

    prompt: Tensor
    written: Tensor
    log_drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.written)


def split_prompts(batch: Batch, prompt_tokens: int) -> Batch:
    """Return a batch of next-token prediction whose losses count what follows the prompts.

    A batch whose data set a loss mask stays as it is.

    Args:
        batch: The batch.
        prompt_tokens: Tokens of a prompt; a row keeps at least one token to predict.
    """
    if batch.loss_mask is not None:
        return batch
    mask = batch.mask
    lengths = mask.sum(1, keepdim=True)
    positions = mask.cumsum(1) - 1
    loss_mask = mask & (positions >= (lengths - 1).clamp(max=prompt_tokens))
    return _with_labels(replace(batch, loss_mask=loss_mask))


def prompts_of(batch: Batch) -> list[Tensor]:
    """Return the token ids of each row before the first that counts."""
    ids, counts = batch.inputs["input_ids"], batch.tokens.mask
    before = batch.mask & (counts.cumsum(1) == 0)
    return [row[own] for row, own in zip(ids, before, strict=True)]


class RowWriter:
    """Puts written text into batches.

    Args:
        tokenizer: The tokenizer of the models.
        pad_id: The token for padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_id: int) -> None:
        self.pad_id = pad_id
        self._tokenizer = tokenizer
        self._left = tokenizer.padding_side == "left"

    def width(self, batch: Batch, texts: Mapping[int, RowText]) -> int:
        """Return the width that a batch needs with some of its rows replaced.

        Args:
            batch: The batch.
            texts: The text of each row that is replaced, by its place in the batch.
        """
        lengths = batch.mask.sum(1).tolist()
        return max(
            len(texts[place]) if place in texts else length for place, length in enumerate(lengths)
        )

    def replace(
        self,
        batch: Batch,
        texts: Mapping[int, RowText],
        sources: Sequence[RowSource],
        width: int,
    ) -> Batch:
        """Return a batch with some of its rows replaced.

        Args:
            batch: The batch, with a loss mask.
            texts: As for `width`.
            sources: The source of each row.
            width: Width to which rows are padded.
        """
        real = batch.mask
        ids = [row[own] for row, own in zip(batch.inputs["input_ids"], real, strict=True)]
        counted = [row[own] for row, own in zip(batch.tokens.mask, real, strict=True)]
        for place, text in texts.items():
            ids[place] = torch.cat([text.prompt, text.written])
            counted[place] = torch.arange(len(text)) >= len(text.prompt)
        inputs = {
            "input_ids": self._padded(ids, self.pad_id, width),
            "attention_mask": self._padded([torch.ones_like(row) for row in ids], 0, width),
        }
        if "token_type_ids" in batch.inputs:
            types, pad = [torch.zeros_like(row) for row in ids], self._tokenizer.pad_token_type_id
            inputs["token_type_ids"] = self._padded(types, pad, width)
        numbers = [torch.from_numpy(self._words.number(row.numpy())) for row in ids]
        made = Batch(
            inputs=inputs,
            labels=batch.labels,
            rows=batch.rows,
            counted=batch.counted,
            words=self._padded(numbers, -1, width),
            loss_mask=self._padded([row.long() for row in counted], 0, width).bool(),
            sources=torch.tensor([ROW_SOURCES.index(source) for source in sources]),
            log_drawn=self._log_drawn(texts, sources, width),
            data_sources=batch.data_sources,
        )
        return _with_labels(made)

    def _log_drawn(
        self, texts: Mapping[int, RowText], sources: Sequence[RowSource], width: int
    ) -> Tensor | None:
        """Return the log-probabilities of tokens where they are predicted, one position before.

        None unless all are known of the student's: earlier versions kept texts without them.
        """
        own = {place: text for place, text in texts.items() if sources[place] == "student"}
        lines = [torch.zeros(0) for _ in sources]
        for place, text in own.items():
            if text.log_drawn is None:
                return None
            lines[place] = torch.cat([text.log_drawn.new_zeros(len(text.prompt)), text.log_drawn])
        if not own:
            return None
        found = self._padded(lines, 0.0, width).roll(-1, dims=1)
        found[:, -1] = 0
        return found

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer)

    def _padded(self, rows: Sequence[Tensor], value: float, width: int) -> Tensor:
        kind = torch.float64 if isinstance(value, float) else torch.int64
        filled = torch.full((len(rows), width), value, dtype=kind)
        for line, row in zip(filled, rows, strict=True):
            line[slice(width - len(row), width) if self._left else slice(len(row))] = row
        return filled


def _with_labels(batch: Batch) -> Batch:
    """Return the batch with the next token as label, where that token counts."""
    assert batch.loss_mask is not None, "rows are split before"
    following = batch.inputs["input_ids"].roll(-1, dims=1)
    counts = batch.loss_mask.roll(-1, dims=1)
    counts[:, -1] = False
    return replace(batch, labels=following.masked_fill(~counts, IGNORE))
