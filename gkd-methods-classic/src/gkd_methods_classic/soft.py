"""Soft labels: the teacher's output distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from gkd_core import Batch, Method, Models, Schedule, Step, Term, View
from gkd_core.losses import soft_labels


class Soft(Method):
    """The teacher's softened output distribution, without labels.

    L = T^2 KL(softmax(z_t / T) || softmax(z_s / T)), averaged over the samples, or over the
    labelled positions of a language model. For a regression it is the squared error between the
    two predictions.
    """

    name = "soft"
    paper = "Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2 (the first objective)"
    same_tokenizer = True

    class Config(Method.Config):
        """Options of `soft`."""

        temperature: Schedule = Field(
            Schedule.parse(4.0), description="T: both logits are divided by it; may be a schedule."
        )
        scale_t2: bool = Field(
            True, description="Multiply by T^2, so that T does not change the gradient's size."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read both logits."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the two predictions."""
        temperature = self.config.temperature.at(step.index, step.total)
        term = soft_labels(
            student.logits, teacher.logits, batch.targets, temperature, self.config.scale_t2
        )
        return {"soft": term}
