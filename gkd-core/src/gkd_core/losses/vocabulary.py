"""`Vocabulary`: the operations over the last dimension that losses over logits need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp
from torch.nn import functional

from gkd_core.distributed.collectives import all_reduce


class Vocabulary(Protocol):
    """The columns of the logits: all of them, or this rank's shard.

    What is computed over a vocabulary is written once, against these operations.

    Attributes:
        ranks: Number of ranks that the columns are divided over.
    """

    @property
    def ranks(self) -> int:
        """Number of ranks that the columns are divided over."""

    def log_softmax(self, *logits: Tensor) -> Sequence[Tensor]:
        """Return log-probabilities `[..., V]`, normalized over all columns, in new tensors.

        Columns without probability get the lowest float instead of -inf, so that 0 times it is 0.

        Args:
            *logits: `[..., V]` each, such as the student's and the teacher's.
        """

    def sum(self, terms: Tensor) -> Tensor:
        """Return the sum over all columns, `[..., V]` to `[...]`."""

    def locate(self, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Find labels among the local columns.

        Args:
            labels: int64 `[...]`.
            width: Number of local columns.

        Returns:
            The column of each label, any valid one if it is on another rank, int64 `[...]`; and
            whether it is local, bool `[...]`.
        """

    def argmax(self, logits: Tensor) -> Tensor:
        """Return the column with the largest value, the first of equals: `[..., V]` to `[...]`."""


class WholeVocabulary:
    """The vocabulary of a rank that has all columns."""

    ranks = 1

    def log_softmax(self, *logits: Tensor) -> Sequence[Tensor]:
        """Return log-probabilities."""
        return [_finite(torch.log_softmax(each, dim=-1)) for each in logits]

    def sum(self, terms: Tensor) -> Tensor:
        """Return the sum over the columns."""
        return terms.sum(-1)

    def locate(self, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the labels: they are the columns."""
        return labels, torch.ones_like(labels, dtype=torch.bool)

    def argmax(self, logits: Tensor) -> Tensor:
        """Return the column with the largest value."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class DividedVocabulary:
    """The vocabulary of ranks that divide the columns over a tensor group.

    `sum` exchanges one number per row, `log_softmax` two for each of its arguments. All shards have
    the same width, so that the ranks chunk the rows identically; the last ones are padded with
    columns of -inf. Gradients of the logits are local.

    Attributes:
        group: The ranks.
        words: Columns of all ranks together, without padding.
    """

    group: ProcessGroup
    words: int

    @property
    def ranks(self) -> int:
        """Number of ranks that the columns are divided over."""
        return self.group.size()

    @property
    def width(self) -> int:
        """Number of local columns."""
        return -(-self.words // self.group.size())

    @property
    def first(self) -> int:
        """Index of the first local column."""
        return self.group.rank() * self.width

    def log_softmax(self, *logits: Tensor) -> Sequence[Tensor]:
        """Return log-probabilities; two all-reduces, whatever the number of arguments."""
        peaks = torch.stack([each.amax(-1, keepdim=True) for each in logits])
        most = all_reduce(peaks, self.group, ReduceOp.MAX)
        shifted = [each - peak for each, peak in zip(logits, most, strict=True)]
        sums = torch.stack([each.exp().sum(-1, keepdim=True) for each in shifted])
        total = all_reduce(sums, self.group).log_()
        return [_finite(each.sub_(size)) for each, size in zip(shifted, total, strict=True)]

    def sum(self, terms: Tensor) -> Tensor:
        """Return the sum over the columns of all ranks."""
        return all_reduce(terms.sum(-1), self.group)

    def locate(self, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Find labels among the local columns."""
        column = labels - self.first
        here = (column >= 0) & (column < width)
        return column.where(here, 0), here

    def argmax(self, logits: Tensor) -> Tensor:
        """Return the column with the largest value; two all-reduces of a number per row."""
        peak, column = logits.max(-1)
        most = all_reduce(peak, self.group, ReduceOp.MAX)
        beaten = peak < most
        return all_reduce(
            (column + self.first).where(~beaten, self.words), self.group, ReduceOp.MIN
        )

    def fill_up(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the bias of the local columns, with -inf for padding.

        Args:
            weight: `[width, D]`.
            bias: `[width]`, or None.
        """
        own = min(max(self.words - self.first, 0), self.width)
        if own == self.width:
            return bias
        bias = weight.new_zeros(self.width) if bias is None else bias
        return functional.pad(bias[:own], (0, self.width - own), value=-torch.inf)


WHOLE = WholeVocabulary()


def _finite(log_probabilities: Tensor) -> Tensor:
    return log_probabilities.clamp_(min=torch.finfo(log_probabilities.dtype).min)
