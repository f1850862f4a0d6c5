"""Soft labels: the teacher's output distribution."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from gkd_core.api import (
    Batch,
    Divergence,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    adaptive_kl,
    js,
    kl,
    reverse_kl,
    same_width,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)


class Soft(Method):
    """The teacher's softened output distribution, without labels.

    L = T^2 KL(softmax(z_t / T) || softmax(z_s / T)), or another divergence of the two, averaged
    over samples, or over the labeled positions of a language model. For regression and embeddings
    it is the squared error between the two predictions.
    """

    name = "soft"
    paper = "Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2 (the first objective)"
    kinds = (
        *Method.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
        "similarity",
        "embedding",
    )
    # A language model writes at temperature 1: that is the distribution to learn.
    kind_defaults = MappingProxyType({"causal-lm": {"temperature": 1.0}})

    class Config(Method.Config):
        """Options of `soft`."""

        temperature: Temperature = Field(
            Schedule.parse(4.0),
            description="T: both logits are divided by it; may be a schedule. The default for "
            "causal-lm is 1.",
        )
        scale_t2: bool = Field(
            True, description="Multiply by T^2, so that T does not change the gradient scale."
        )
        divergence: Literal[
            "kl",
            "reverse-kl",
            "js",
            "skew-kl",
            "skew-reverse-kl",
            "adaptive-kl",
            "total-variation",
            "soft-cross-entropy",
        ] = Field(
            "kl",
            description="Divergence between the teacher's distribution p and the student's q: KL(p "
            "|| q), KL(q || p), Jensen-Shannon, KL(p || mixture), KL(q || mixture), both KL in "
            "shares that follow their distance, total variation or cross-entropy.",
        )
        beta: float = Field(
            0.5,
            ge=0,
            le=1,
            description="For `js`: share of the teacher in the mixture. 0 stands for `kl` and 1 "
            "for `reverse-kl`, as in TRL, although `js` itself tends to 0 there.",
        )
        alpha: float = Field(
            0.1,
            gt=0,
            lt=1,
            description="Share in the mixture: of the teacher for `skew-kl`, of the student for "
            "`skew-reverse-kl`.",
        )
        mu: float = Field(
            0.5,
            gt=0,
            lt=1,
            description="For `adaptive-kl`: most probability of the head, the teacher's likeliest "
            "classes.",
            json_schema_extra={"added": True},
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject vectors of different widths."""
        if models.student.predicted == "vector":
            same_width(models, "soft")

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def softens_at(self, step: Step) -> Collection[float] | None:
        """Compare distributions; the adaptive divergence tells their head from their tail."""
        if self.config.divergence == "adaptive-kl":
            return None
        return [self.config.temperature.at(step)]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the two predictions."""
        term = soft_labels(
            student.prediction,
            teacher.prediction,
            batch.targets,
            temperature=self.config.temperature.at(step),
            scale=self.config.scale_t2,
            divergence=self._divergence(),
        )
        return {"soft": term}

    def _divergence(self) -> Divergence:
        beta, alpha = self.config.beta, self.config.alpha
        ends: Mapping[float, Divergence] = {0: kl, 1: reverse_kl}
        divergences: Mapping[str, Divergence] = {
            "kl": kl,
            "reverse-kl": reverse_kl,
            "js": ends.get(beta, partial(js, beta=beta)),
            "skew-kl": partial(skew_kl, alpha=alpha),
            "skew-reverse-kl": partial(skew_reverse_kl, alpha=alpha),
            "adaptive-kl": partial(adaptive_kl, mu=self.config.mu),
            "total-variation": total_variation,
            "soft-cross-entropy": soft_cross_entropy,
        }
        return divergences[self.config.divergence]
