"""DistilBERT: distillation during pre-training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from gkd_core.api import (
    Batch,
    Items,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    cosine,
    hard_labels,
    same_width,
    soft_labels,
)


class DistilBERT(Method):
    """Soft labels, the language model's own labels and a cosine loss on the last hidden states.

    L = alpha_ce T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + alpha_mlm CE(y, z_s)
    + alpha_cos (1 - cos(h_s, h_t)), with h the last hidden state at each non-padding position.
    Designed for pre-training, masked or causal; in classification, the first two terms are averaged
    over samples. Student and teacher must have the same hidden size.
    """

    name = "distilbert"
    paper = "Sanh, Debut, Chaumond, Wolf, 2019, arXiv:1910.01108"
    kinds = (*Method.kinds, "multi-label", "token-classification", "multiple-choice")
    needs_labels = True

    class Config(Method.Config):
        """Options of `distilbert`."""

        temperature: Temperature = Field(
            Schedule.parse(2.0), description="T: both logits are divided by it; may be a schedule."
        )
        alpha_ce: Schedule = Field(
            Schedule.parse(5.0), description="Weight of the soft labels; may be a schedule."
        )
        alpha_mlm: Schedule = Field(
            Schedule.parse(2.0), description="Weight of the true labels; may be a schedule."
        )
        alpha_cos: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the hidden states; may be a schedule."
        )
        kl_on: Literal["tokens", "targets"] = Field(
            "tokens",
            description="Where a language model's soft labels count: at all non-padding `tokens`, "
            "or only at the `targets`, the positions with a label.",
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models with different hidden sizes."""
        same_width(
            models,
            self.name,
            "Give the student the teacher's hidden size, or choose a method without hidden states, "
            "such as kd",
        )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits and the last hidden state of both models."""
        for side in ("student", "teacher"):
            yield f"{side}.logits"
            yield f"{side}.hidden[last].normed"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare predictions, labels and hidden states."""
        hard = hard_labels(student.prediction, batch.require_labels(), batch.targets)
        config = self.config
        soft = soft_labels(
            student.prediction,
            teacher.prediction,
            self._predicted(batch),
            config.temperature.at(step),
        )
        direction = cosine(student.hidden.normed, teacher.hidden.normed, batch.tokens)
        return {
            "soft": config.alpha_ce.at(step) * soft,
            "hard": config.alpha_mlm.at(step) * hard,
            "cosine": config.alpha_cos.at(step) * direction,
        }

    def _predicted(self, batch: Batch) -> Items:
        """Return the items whose soft labels count; classification predicts once per sample."""
        per_token = batch.targets.mask.dim() == 2
        return batch.tokens if per_token and self.config.kl_on == "tokens" else batch.targets
