"""GLMD: distillation through the language model's output alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from gkd_core.api import Batch, Method, Models, Schedule, Step, Temperature, Term, View, soft_labels


class GLMD(Method):
    """The teacher's output distribution, and nothing else, at every position and in every stage.

    L = T^2 KL(softmax(z_t / T) || softmax(z_s / T)): in language modeling with a high T at every
    non-padding position, on tasks with T = 1. Neither intermediate layers nor labels are read.
    """

    name = "glmd"
    paper = "Tan, Tam, Wang, Gong, Zhao, Zhang, Tang, Findings of ACL 2023, arXiv:2306.06625"

    class Config(Method.Config):
        """Options of `glmd`."""

        temperature: Temperature = Field(
            Schedule.parse(15.0), description="T in language modeling; may be a schedule."
        )
        task_temperature: Temperature = Field(
            Schedule.parse(1.0), description="T in classification; may be a schedule."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the two predictions."""
        per_token = batch.targets.mask.dim() == 2
        schedule = self.config.temperature if per_token else self.config.task_temperature
        over = batch.tokens if per_token else batch.targets
        temperature = schedule.at(step)
        return {"glmd": soft_labels(student.prediction, teacher.prediction, over, temperature)}
