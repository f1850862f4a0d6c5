"""`TopKLogits`: logits of which the likeliest words are known, and the mass of all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Never

import torch
from torch import Tensor

from gkd_core.errors import MethodError
from gkd_core.losses.rules import Rule, Slope
from gkd_core.losses.vocabulary import WHOLE, Vocabulary

NONE = -1
"""The id of a word that is left out."""


@dataclass(frozen=True)
class TopKLogits:
    """A teacher's softened logits of its likeliest words, with all other words as one outcome.

    A divergence compares the teacher's distribution over these words and the tail, which is all
    others together, with the student's. By the data-processing inequality, a KL divergence, also of
    a mixture, is then at most that of the whole distributions, and it grows with k.

    Attributes:
        ids: Different words, the likeliest first, int64 `[*items, k]`; `NONE` at those left out.
        log_probs: Log-probabilities of these words and of the tail, `[*items, k + 1]`; -inf at
            words that are left out, and at a tail without words.
        words: Width of the whole logits, V.
        temperature: What the logits were divided by. They are not known at any other.
    """

    ids: Tensor
    log_probs: Tensor
    words: int
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float = 1.0) -> TopKLogits:
        """Return the k likeliest words of logits `[*items, V]` and the rest as a tail."""
        words = logits.shape[-1]
        log_probs = torch.log_softmax(logits / temperature, -1)
        found, ids = log_probs.topk(min(k, words))
        tail = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
        return cls(ids, torch.cat([found, tail], -1), words, temperature)

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole logits."""
        return torch.Size((*self.ids.shape[:-1], self.words))

    def dim(self) -> int:
        """Return the number of dimensions of the logits."""
        return self.ids.dim()

    def dense(self) -> Never:
        """Raise a `MethodError`: the whole logits are not known."""
        self.refuse("the logits of all words")

    def refuse(self, wanted: str) -> Never:
        """Raise a `MethodError` about something that a few words do not determine."""
        raise MethodError(
            f"the teacher's answers are its {self.ids.shape[-1]} likeliest words and the mass of "
            f"all others, which do not determine {wanted}. Use the teacher itself, or --form "
            "hidden of gkd cache"
        )

    def check_temperature(self, temperature: float) -> None:
        """Reject any temperature but that of the logits.

        Raises:
            MethodError: Says both.
        """
        if temperature != self.temperature:
            raise MethodError(
                f"the temperature is {temperature:g}, but the teacher's answers are its likeliest "
                f"words at {self.temperature:g}, which do not determine those at another. Set the "
                f"method's temperature to {self.temperature:g}, or ask the teacher at "
                f"{temperature:g}"
            )

    def moved(self, move: Callable[[Tensor], Tensor]) -> TopKLogits:
        """Return the same logits with `move` applied to each tensor."""
        return replace(self, ids=move(self.ids), log_probs=move(self.log_probs))

    def at_width(self, words: int) -> TopKLogits:
        """Return the same logits cut, or padded with words without probability."""
        ids, log_probs = self.ids, self.log_probs
        if words < self.words:
            missing = ids >= words
            ids = ids.masked_fill(missing, NONE)
            # Where all words that are left are known, no word is in the tail.
            without_tail = (~missing).sum(-1, keepdim=True) == words
            left_out = torch.cat([missing, without_tail], -1)
            log_probs = log_probs.masked_fill(left_out, -math.inf)
        return replace(self, ids=ids, log_probs=log_probs, words=words)


@dataclass(frozen=True)
class Buckets:
    """Rows of `TopKLogits`.

    Attributes:
        ids: int64 `[N, k]`.
        log_probs: `[N, k + 1]`.
    """

    ids: Tensor
    log_probs: Tensor

    def at(self, index: Tensor) -> Buckets:
        """Return the rows at int64 `[n]`."""
        return Buckets(self.ids[index], self.log_probs[index])


def bucketed(
    rule: Rule, logits: Tensor, target: Buckets, vocabulary: Vocabulary
) -> tuple[Tensor, Slope]:
    """Apply a rule to the distributions of student and teacher over the teacher's buckets.

    The rule's gradient with respect to the log-probability of a bucket sums to 0 over them. Each
    word of the tail has its part of that of the tail, in proportion to its probability.

    Args:
        rule: A rule that depends on the logits through their softmax alone.
        logits: The student's, `[N, V]`.
        target: The teacher's buckets.
        vocabulary: The columns of the student's logits.
    """
    column, here = vocabulary.locate(target.ids.clamp(min=0), logits.shape[-1])
    here = here & (target.ids != NONE)
    column = column.where(here, 0)
    (log_q,) = vocabulary.log_softmax(logits)
    own = log_q.gather(-1, column).where(here, 0)
    # What is not here repeats the first column: a word leaves the tail by subtracting itself.
    others = log_q.exp_()
    others.scatter_add_(-1, column, -others.gather(-1, column).where(here, 0))
    # One exchange for the words, of which one rank has each, and for the tail.
    local = torch.cat([own, others.sum(-1, keepdim=True)], -1)
    own, tail = vocabulary.sum(local.unsqueeze(-1)).tensor_split([-1], dim=-1)
    log_buckets = torch.cat([own.masked_fill(target.ids == NONE, -math.inf), tail.log()], -1)
    value, slope = rule(log_buckets, target.log_probs.to(logits.dtype), WHOLE)

    def through() -> Tensor:
        words, rest = slope().tensor_split([-1], dim=-1)
        others.mul_(rest / tail.clamp(min=torch.finfo(tail.dtype).tiny))
        return others.scatter_add_(-1, column, words.where(here, 0))

    return value, through
