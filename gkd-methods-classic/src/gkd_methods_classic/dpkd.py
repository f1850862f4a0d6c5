"""DPKD: the student prefers the teacher's token to its own, as much as the teacher does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch.nn import functional

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Step,
    Term,
    View,
    cross_entropy,
    hard_labels,
    match_vocabulary,
    most_likely,
)


class DPKD(Method):
    """Preference of the teacher's most likely token over the student's, and the labels.

    L = (1 - ratio) CE(y, z_s) + ratio softplus(-beta m), with the margin m = (log q(a) - log q(b))
    - (log p(a) - log p(b)), where p is the teacher's distribution, q the student's, and a and b
    are their most likely tokens. Where these are equal, the loss is ln 2 without a gradient.
    """

    name = "dpkd"
    paper = "Li, Gu, Dong, Wang, Cheng, Wei, 2024, arXiv:2406.19774"
    kinds = ("classification", "span-classification", "masked-lm", "causal-lm")
    needs_labels = True

    class Config(Method.Config):
        """Options of `dpkd`; the defaults are those of the published code."""

        beta: float = Field(0.1, gt=0, description="Factor of the margin.")
        ratio: float = Field(
            0.5, ge=0, le=1, description="Weight of the preference; the label term's is 1 - ratio."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the preference of both models, and the student with the labels."""
        learned, over, labels = student.prediction, batch.targets, batch.require_labels()
        known = match_vocabulary(teacher.prediction, learned.shape[-1])
        with torch.no_grad():
            best, own = most_likely(known), most_likely(learned)
            gap = cross_entropy(known, own, over).values - cross_entropy(known, best, over).values
        mine = cross_entropy(learned, own, over).values - cross_entropy(learned, best, over).values
        preference = functional.softplus(-self.config.beta * (mine - gap))
        ratio = self.config.ratio
        return {
            "preference": ratio * Term(torch.where(over.mask, preference, 0.0), over),
            "hard": (1 - ratio) * hard_labels(learned, labels, over),
        }
