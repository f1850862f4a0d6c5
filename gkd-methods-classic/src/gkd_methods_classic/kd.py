"""Knowledge distillation as originally published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from pydantic import Field

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Schedule,
    Share,
    Step,
    Temperature,
    Term,
    View,
    hard_labels,
    soft_labels,
)


class KD(Method):
    """Soft and hard labels together.

    L = alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE(y, z_s).
    """

    name = "kd"
    paper = "Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2"
    kinds = (
        *Method.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
    )
    kind_defaults = MappingProxyType({"causal-lm": {"temperature": 1.0}})
    needs_labels = True

    class Config(Method.Config):
        """Options of `kd`."""

        temperature: Temperature = Field(
            Schedule.parse(4.0),
            description="T: both logits are divided by it; may be a schedule. The default for "
            "causal-lm is 1.",
        )
        alpha: Share = Field(
            Schedule.parse(0.5),
            description="Weight of the soft term; the hard term's is 1 - alpha. May be a schedule.",
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def softens_at(self, step: Step) -> Collection[float] | None:
        """Compare distributions at the temperature of the step."""
        return [self.config.temperature.at(step)]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student's prediction with the teacher's and with the labels."""
        hard = hard_labels(student.prediction, batch.require_labels(), batch.targets)
        alpha = self.config.alpha.at(step)
        temperature = self.config.temperature.at(step)
        soft = soft_labels(student.prediction, teacher.prediction, batch.targets, temperature)
        return {"soft": alpha * soft, "hard": (1 - alpha) * hard}
