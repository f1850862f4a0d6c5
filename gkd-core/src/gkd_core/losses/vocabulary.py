"""`Vocabulary`: what a loss over logits needs to know about their last dimension."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Vocabulary(Protocol):
    """The columns of the logits: all of them, or a shard of a vocabulary split over ranks.

    The losses are written once, against these three operations; where the columns are split, the
    operations communicate one number per row. All shards have the same width, so that they cut
    the rows into the same chunks. Gradients are local: those of the logits, and with `LinearLogits`
    those of weight and bias. Hidden states that all shards share get the shard's part of their
    gradient; whoever distributed them sums the parts.
    """

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Return log-probabilities `[..., V]`, normalised over all columns, in a new tensor.

        Columns without probability get the least float instead of -inf, so that 0 times it is 0.
        """

    def sum(self, terms: Tensor) -> Tensor:
        """Return the sum over all columns, `[..., V]` to `[...]`."""

    def locate(self, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Find labels among the columns here.

        Args:
            labels: int64 `[...]`.
            width: Number of columns here.

        Returns:
            The column of each label, any valid one if it is elsewhere, int64 `[...]`; and whether
            it is here, bool `[...]`.
        """


class WholeVocabulary:
    """All columns are here."""

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Return log-probabilities."""
        return torch.log_softmax(logits, dim=-1).clamp_(min=torch.finfo(logits.dtype).min)

    def sum(self, terms: Tensor) -> Tensor:
        """Return the sum over the columns."""
        return terms.sum(-1)

    def locate(self, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the labels: they are the columns."""
        return labels, torch.ones_like(labels, dtype=torch.bool)


WHOLE = WholeVocabulary()
