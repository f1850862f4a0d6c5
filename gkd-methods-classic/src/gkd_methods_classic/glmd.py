"""GLMD: distillation through the language model's output alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Logits,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    merged_columns,
    nearest_columns,
    soft_labels,
)


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
        left_out: Literal["drop", "nearest"] = Field(
            "drop",
            description="What becomes of the teacher's probability of tokens that the student does "
            "not have (`student.vocabulary`): it is dropped, or goes to the token that is nearest "
            "in the teacher's output embedding, by dot product.",
        )

    config: Config
    _nearest: Tensor | None = None

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the two predictions."""
        per_token = batch.targets.mask.dim() == 2
        schedule = self.config.temperature if per_token else self.config.task_temperature
        over = batch.tokens if per_token else batch.targets
        temperature, known = schedule.at(step), teacher.prediction
        width = student.prediction.shape[-1]
        if per_token and self.config.left_out == "nearest" and known.shape[-1] > width:
            known = merged_columns(known, self._nearest_of(known, width), temperature)
        return {"glmd": soft_labels(student.prediction, known, over, temperature)}

    def _nearest_of(self, known: Logits, width: int) -> Tensor:
        """Return the tokens that replace those left out, found once: a teacher does not change."""
        if self._nearest is None:
            self._nearest = nearest_columns(known, width)
        return self._nearest
