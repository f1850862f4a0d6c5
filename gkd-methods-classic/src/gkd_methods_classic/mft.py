"""MFT: the teacher's distribution, corrected where the label is not its most likely token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Items,
    Logits,
    Method,
    Models,
    Step,
    Term,
    View,
    cross_entropy,
    match_vocabulary,
    most_likely,
    soft_cross_entropy,
)


class MFT(Method):
    """The teacher's distribution, in which the label wins by `threshold`.

    L = KL(p' || q), with p' = (1 - c) p + c e_y. Where the teacher's most likely token a is not the
    label y, c = (threshold + p(a) - p(y)) / (1 + p(a) - p(y)), so that p'(y) - p'(a) = threshold;
    elsewhere c = 0.
    """

    name = "mft"
    paper = "Belcak, Heinrich, Kautz, Molchanov, 2025, arXiv:2506.15702"
    kinds = ("classification", "span-classification", "masked-lm", "causal-lm")
    needs_labels = True

    class Config(Method.Config):
        """Options of `mft`."""

        threshold: float = Field(
            0.2,
            ge=0,
            lt=1,
            description="By how much the label's probability exceeds that of the token that the "
            "teacher prefers.",
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student with the corrected teacher."""
        learned, over = student.prediction, batch.targets
        known = match_vocabulary(teacher.prediction, learned.shape[-1])
        labels = batch.require_labels().where(over.mask, 0)
        with torch.no_grad():
            share, entropy = self._correction(known, labels, over)
        soft = soft_cross_entropy(learned, known, over)
        hard = cross_entropy(learned, labels, over)
        values = (1 - share) * soft.values + share * hard.values - entropy
        return {"mft": Term(torch.where(over.mask, values, 0.0), over)}

    def _correction(self, known: Logits, labels: Tensor, over: Items) -> tuple[Tensor, Tensor]:
        """Return c of each item, and the entropy of p'."""
        best = most_likely(known)
        log_p = -cross_entropy(known, labels, over).values
        ahead = (-cross_entropy(known, best, over).values).exp() - log_p.exp()
        share = (self.config.threshold + ahead) / (1 + ahead)
        share = torch.where(best == labels, 0.0, share)
        # p' has (1 - c) p at all tokens but the label; `rest` is -p log p, summed over these.
        rest = soft_cross_entropy(known, known, over).values + log_p.exp() * log_p
        others = (1 - share) * (rest - (1 - log_p.exp()) * (1 - share).log())
        label = (1 - share) * log_p.exp() + share
        return share, others - torch.xlogy(label, label)
