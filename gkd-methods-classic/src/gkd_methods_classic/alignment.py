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


@dataclass(frozen=True)
class Spans:
    """The spans of a text that one model reads as one token or several.

    Attributes:
        first: Position that predicts the first token of each span, int64 `[B, G]`; -1 where the
            model does not predict the whole span.
        following: Span whose later tokens each position predicts, int64 `[B, S]`; -1 for others.
    """

    first: Tensor
    following: Tensor

    def chain(self, log_probabilities: Tensor) -> Tensor:
        """Return the log-probability of the later tokens of each span, given the first, `[B, G]`.

        Args:
            log_probabilities: Of the token that each position predicts, `[B, S]`.
        """
        later = self.following >= 0
        found = log_probabilities.new_zeros(self.first.shape)
        values = torch.where(later, log_probabilities, 0.0)
        return found.scatter_add(1, self.following.clamp(min=0), values)


@dataclass(frozen=True)
class SpanPairs:
    """The spans of a text that both models predict.

    Attributes:
        rows: Row of each pair in the batch, int64 `[N]`.
        spans: Number of its span in the row, int64 `[N]`.
        student: The spans as the student reads them.
        teacher: The spans as the teacher reads them.
    """

    rows: Tensor
    spans: Tensor
    student: Spans
    teacher: Spans


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


def pair_spans(batch: Batch, view: Batch) -> SpanPairs:
    """Pair the shortest spans of a text that are whole tokens for both models.

    A span ends where a token of either model ends at the same byte as one of the other, and begins
    where the one before ends. What follows the last such byte has no pair.

    Args:
        batch: The rows as the student reads them.
        view: The same rows as the teacher reads them.
    """
    count = min(batch.mask.shape[1], view.mask.shape[1])
    student, teacher = _spans(batch, view, count), _spans(view, batch, count)
    rows, spans = ((student.first >= 0) & (teacher.first >= 0)).nonzero(as_tuple=True)
    return SpanPairs(rows, spans, student, teacher)


def text_tokens(batch: Batch) -> Tensor:
    """Return the mask of the tokens that count and stand for text, bool `[B, S]`."""
    assert batch.byte_offsets is not None, "the method aligns tokens"
    start, end = batch.byte_offsets.unbind(-1)
    return batch.tokens.mask & (start >= 0) & (start < end)


def predicts(batch: Batch, tokens: Tensor) -> Tensor:
    """Return the mask of the positions that predict one of the tokens, bool `[B, S]`.

    Args:
        batch: The rows as a model reads them.
        tokens: True at the tokens, bool `[B, S]`.
    """
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


def _spans(batch: Batch, other: Batch, count: int) -> Spans:
    """Return the spans of `batch` that end where a token of `other` ends, too."""
    numbers = _span_numbers(batch, other)
    predicted = predicts(batch, numbers >= 0)
    at = torch.where(predicted, numbers.roll(-1, dims=1), -1)
    width = at.shape[1]
    # Tokens without a span, and positions that predict none, go to one more column.
    places = torch.arange(width, device=at.device).expand_as(at)
    first = at.new_full((len(at), count + 1), width)
    first = first.scatter_reduce(1, at.where(at >= 0, count), places, "amin")[:, :count]
    missed = (numbers >= 0) & ~predicted.roll(1, dims=1)
    gaps = at.new_zeros(len(at), count + 1)
    gaps = gaps.scatter_add(1, numbers.where(missed, count), missed.long())[:, :count]
    is_first = places == first.gather(1, at.clamp(min=0))
    return Spans(
        first=first.where((first < width) & (gaps == 0), -1),
        following=at.where(~is_first, -1),
    )


def _span_numbers(batch: Batch, other: Batch) -> Tensor:
    """Return the number, from 0, of the span that each token belongs to, or -1, `[B, S]`."""
    text, ends = text_tokens(batch), _ends(batch)
    common = text & (ends.unsqueeze(2) == _ends(other).unsqueeze(1)).any(-1)
    beyond = int(ends.max()) + 1
    following = ends.where(text, beyond).flip(1).cummin(1).values.flip(1).roll(-1, dims=1)
    following[:, -1] = beyond
    # Of tokens that share a character, and so their end, the last one ends the span.
    closing = common & (following > ends)
    numbers = closing.cumsum(1) - closing.long()
    return numbers.where(text & (numbers < closing.sum(1, keepdim=True)), -1)


def _ends(batch: Batch) -> Tensor:
    """Return the byte at which each token of text ends, or -1, int64 `[B, S]`."""
    assert batch.byte_offsets is not None, "the method aligns tokens"
    return batch.byte_offsets[..., 1].where(text_tokens(batch), -1)
