"""Which predictions of two language models with different tokenizers belong together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_core.api import Batch


@dataclass(frozen=True)
class TokenPairs:
    """Predictions of two models that are compared, one pair per token.

    Attributes:
        rows: Row of each pair in the batch, int64 `[N]`.
        student: Position of the student's prediction in that row, int64 `[N]`.
        teacher: Position of the teacher's, int64 `[N]`.
    """

    rows: Tensor
    student: Tensor
    teacher: Tensor


def pair_in_order(batch: Batch, view: Batch) -> TokenPairs:
    """Pair the tokens of a text by their number: the first with the first, and so on.

    Special tokens and tokens without text have no number; a token that either model does not
    predict, such as the first of a row without a start token, has no pair.

    Args:
        batch: The rows as the student reads them.
        view: The same rows as the teacher reads them.
    """
    count = min(batch.mask.shape[1], view.mask.shape[1])
    student, teacher = (_find(_numbers(one), count) for one in (batch, view))
    rows, number = ((student >= 0) & (teacher >= 0)).nonzero(as_tuple=True)
    return TokenPairs(rows, student[rows, number], teacher[rows, number])


def text_tokens(batch: Batch) -> Tensor:
    """Return which tokens that count stand for text, bool `[B, S]`."""
    assert batch.byte_offsets is not None, "the method aligns tokens"
    start, end = batch.byte_offsets.unbind(-1)
    return batch.tokens.mask & (start >= 0) & (start < end)


def predicts(batch: Batch, tokens: Tensor) -> Tensor:
    """Return which positions predict one of the tokens, bool `[B, S]`."""
    return batch.targets.mask & tokens.roll(-1, dims=1)


def _numbers(batch: Batch) -> Tensor:
    """Return the number, from 0, of the token of text that each position predicts, or -1."""
    text = text_tokens(batch)
    numbers = (text.cumsum(1) - 1).roll(-1, dims=1)
    return torch.where(predicts(batch, text), numbers, -1)


def _find(numbers: Tensor, count: int) -> Tensor:
    """Return the position of each number below `count` in its row, or -1, int64 `[B, count]`."""
    found = numbers.new_full((len(numbers), count), -1)
    rows, places = ((numbers >= 0) & (numbers < count)).nonzero(as_tuple=True)
    found[rows, numbers[rows, places]] = places
    return found
