"""MiniLLM: the reverse divergence of whole texts, by policy gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Step,
    Term,
    View,
    cross_entropy,
    importance,
    reverse_kl,
)


class MiniLLM(Method):
    """KL(q || p) of whole texts: its next-token part exactly, the rest by policy gradient.

    A token y_t that the student wrote has the reward r_t = log p(y_t) - log q(y_t). Its effect on
    the next token is the dense divergence KL(q || p) of its position (`single`); its effect on
    what follows is -R_t log q(y_t), with R_t the mean of the later rewards (`long`). Both are
    weighed by w_t = q(y_t) / d(y_t), where d is what the token was drawn from: with a share a of
    the teacher (`rollout.mixture`), a p(y_t) + (1 - a) q(y_t). Rows that the student did not write
    keep it a language model by their own labels (`lm`).
    """

    name = "minillm"
    paper = "Gu, Dong, Wei, Huang, ICLR 2024, arXiv:2306.08543, section 2"
    kinds = ("causal-lm",)
    same_tokenizer = True
    on_policy = True

    class Config(Method.Config):
        """Options of `minillm`."""

        long_weight: float = Field(1.0, ge=0, description="Weight of the policy gradient.")
        lm_weight: float = Field(
            1.0, ge=0, description="Weight of the labels of rows that the student did not write."
        )
        clip: float = Field(
            100.0,
            gt=0,
            description="Largest reward of a token, of either sign; 100 as in the published "
            "commands.",
        )

    config: Config

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the targets that the student wrote, and the others."""
        written = batch.written_by("student").unsqueeze(1)
        return {"written": batch.targets.mask & written, "given": batch.targets.mask & ~written}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Combine the next-token divergence, the returns and the language model's own loss."""
        over, labels = batch.items("written"), batch.require_labels()
        surprise = cross_entropy(student.prediction, labels, over).values
        known = cross_entropy(teacher.prediction, labels, over).values
        reward = (surprise.detach() - known).clamp(-self.config.clip, self.config.clip)
        returns = mean_of_later(reward, over.mask)
        weight = importance(surprise, batch)
        given = cross_entropy(student.prediction, labels, batch.items("given"))
        return {
            "single": reverse_kl(student.prediction, teacher.prediction, over) * weight,
            "long": self.config.long_weight * Term(surprise * returns * weight, over),
            "lm": self.config.lm_weight * given,
        }


def mean_of_later(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the rewards after each token of a row; 0 after the last.

    Args:
        rewards: `[B, S]`; 0 where nothing counts.
        mask: True where a token counts, bool `[B, S]`.

    Returns:
        `[B, S]`.
    """

    def after(values: Tensor) -> Tensor:
        return values.flip(1).cumsum(1).flip(1) - values

    later = after(rewards) / after(mask.to(rewards.dtype)).clamp(min=1)
    return torch.where(mask, later, 0.0)
