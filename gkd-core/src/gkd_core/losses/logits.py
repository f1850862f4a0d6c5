"""Logits: dense, not yet computed, or the likeliest only; whole or divided over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.distributed.collectives import gather, sum_gradient
from gkd_core.losses.top_k import TopKLogits
from gkd_core.losses.vocabulary import WHOLE, DividedVocabulary, Vocabulary


@dataclass(frozen=True)
class LinearLogits:
    """Logits that are not computed yet: a linear layer applied to hidden states.

    If the layer is divided over a tensor group, weight and bias are this rank's shards. The hidden
    states are whole, and their gradient is summed over the ranks.

    Attributes:
        hidden: `[*items, D]`.
        weight: `[V, D]`.
        bias: `[V]`, or None.
        divided: How the columns are divided; None if all are on this rank.
        shared: The hidden states, for work on this rank's columns only.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    divided: DividedVocabulary | None = None
    shared: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once: all losses of these logits share one sum of the gradient over the ranks.
        group = None if self.divided is None else self.divided.group
        shared = self.hidden if group is None else sum_gradient(self.hidden, group)
        object.__setattr__(self, "shared", shared)

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole logits."""
        words = self.weight.shape[0] if self.divided is None else self.divided.words
        return torch.Size((*self.hidden.shape[:-1], words))

    def dim(self) -> int:
        """Return the number of dimensions of the logits."""
        return self.hidden.dim()

    def dense(self) -> Tensor:
        """Return the whole logits."""
        logits = functional.linear(self.shared, self.weight, self.bias)
        if self.divided is None:
            return logits
        return gather(logits, -1, self.divided.group)[..., : self.divided.words]

    def whole(self) -> ModelLogits:
        """Return the same logits with all columns on this rank.

        The smaller tensor is gathered: the weight, or the logits if there are fewer rows than the
        layer has inputs.
        """
        if self.divided is None:
            return self
        if self.hidden.shape[:-1].numel() < self.hidden.shape[-1]:
            return self.dense()
        return _whole_head(self)(self.hidden)


@dataclass(frozen=True)
class LinearHead:
    """The last layer of a model's head: a linear map from hidden states to logits.

    Attributes:
        weight: `[V, D]`; this rank's shard if the layer is divided.
        bias: `[V]`, or None.
        divided: How the columns are divided; None if all are on this rank.
        together: Whether the ranks that divide it all have the same hidden states.
    """

    weight: Tensor
    bias: Tensor | None
    divided: DividedVocabulary | None = None
    together: bool = True

    def __call__(self, hidden: Tensor) -> LinearLogits:
        """Return the logits of hidden states `[*items, D]`."""
        head = self if self.together else self._whole
        return LinearLogits(hidden, head.weight, head.bias, head.divided)

    @cached_property
    def _whole(self) -> LinearHead:
        return _whole_head(self)


def _whole_head(head: LinearHead | LinearLogits) -> LinearHead:
    """Return a head with all columns on this rank; the ranks that divide it call this together."""
    if head.divided is None:
        return LinearHead(head.weight, head.bias)
    group, words = head.divided.group, head.divided.words
    weight = gather(head.weight, 0, group)[:words]
    # A rank with padding columns has a bias even where others have none.
    missing = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
    return LinearHead(weight, gather(missing, 0, group)[:words])


ModelLogits: TypeAlias = Tensor | LinearLogits
"""Logits `[*items, V]` that a model computes, dense or not yet computed."""

Logits: TypeAlias = ModelLogits | TopKLogits
"""Logits `[*items, V]`, dense or not yet computed; those of a teacher may be the likeliest only."""


def vocabulary_of(logits: Logits) -> Vocabulary:
    """Return the vocabulary that the columns of logits belong to."""
    return _divided(logits) or WHOLE


def most_likely(logits: Logits) -> Tensor:
    """Return the most likely token of each row of logits, int64 `[*items]`.

    Of logits that are sharded over ranks, two numbers per row are exchanged. Every rank returns the
    same tokens.

    Args:
        logits: `[*items, V]`.
    """
    if isinstance(logits, Tensor):
        return logits.argmax(-1)
    if isinstance(logits, TopKLogits):
        return logits.ids[..., 0]
    own = functional.linear(logits.hidden, logits.weight, logits.bias)
    return vocabulary_of(logits).argmax(own)


def match_vocabulary(teacher: Logits, width: int) -> Logits:
    """Return the teacher's logits at the student's width: truncated, or padded with -inf.

    Args:
        teacher: `[*items, V]`, constant.
        width: The student's number of columns.
    """
    if teacher.shape[-1] == width:
        return teacher
    if isinstance(teacher, TopKLogits):
        return teacher.at_width(width)
    return columns(_whole(teacher), 0, width)


def match_shards(teacher: Logits, student: Logits) -> Logits:
    """Return the teacher's logits for this rank's columns of the student's.

    Nothing is communicated unless the teacher's head is divided differently from the student's.

    Args:
        teacher: `[*items, V]`, constant.
        student: `[*items, V]`.
    """
    wanted = _divided(student)
    if _divided(teacher) == wanted or isinstance(teacher, TopKLogits):
        return teacher
    whole = _whole(teacher)
    return whole if wanted is None else columns(whole, wanted.first, wanted.width)


def columns(logits: ModelLogits, first: int, width: int) -> ModelLogits:
    """Return a range of columns of whole logits; -inf beyond their last column.

    Args:
        logits: `[*items, V]`, constant.
        first: Index of the first column.
        width: Number of columns.
    """
    own = slice(first, first + width)
    missing = width - len(range(*own.indices(logits.shape[-1])))
    if isinstance(logits, Tensor):
        return functional.pad(logits[..., own], (0, missing), value=-math.inf)
    weight, bias = logits.weight.detach()[own], logits.bias
    bias = None if bias is None else bias.detach()[own]
    if missing > 0:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        bias = functional.pad(bias, (0, missing), value=-math.inf)
        weight = functional.pad(weight, (0, 0, 0, missing))
    return LinearLogits(logits.hidden, weight, bias)


def _divided(logits: Logits) -> DividedVocabulary | None:
    return logits.divided if isinstance(logits, LinearLogits) else None


def _whole(logits: ModelLogits) -> ModelLogits:
    return logits if isinstance(logits, Tensor) else logits.whole()
