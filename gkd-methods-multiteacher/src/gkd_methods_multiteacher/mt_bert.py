"""Teachers weighted by how well they do on each sample."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from torch import Tensor

from gkd_core.api import Batch, MethodError, Models, Step, TeacherCombiner, View, hard_labels
from gkd_methods_multiteacher.samples import per_sample


class MTBERT(TeacherCombiner):
    """Sum the terms over the teachers, each sample weighted by how right the teacher is about it.

    L = sum_i L_i / (1 + CE(y, z_t^i)), with one weight per teacher and sample. The paper weighs the
    prediction (`soft`) only, and adds the distances of hidden states and the labels beside it. With
    `cofinetuning` the teachers of a stage first learn from the labels together, with one head.
    """

    name = "mt-bert"
    paper = "C. Wu, F. Wu, Huang, Findings of ACL 2021, arXiv:2106.01023"
    needs_labels = True

    class Config(TeacherCombiner.Config):
        """Options of `mt-bert`."""

        cofinetuning: int = Field(
            0,
            ge=0,
            description="Epochs in which the teachers learn from the labels before the student "
            "does, all with the head of the first; 0 takes them as they are.",
        )

    config: Config

    def check(self) -> None:
        """Refuse to share the head of teachers that differ in architecture or width."""
        student = self.models[0].student
        if not self.config.cofinetuning:
            return
        if student.labels == student.vocab_size:
            raise MethodError(
                "mt-bert.cofinetuning shares a head of classes, which a language model has not. "
                "Set mt-bert.cofinetuning=0"
            )
        first, *others = [one.teacher for one in self.models if one.teacher is not None]
        for other in others:
            if (other.family, other.hidden_size) != (first.family, first.hidden_size):
                raise MethodError(
                    f"mt-bert.cofinetuning gives all teachers one head, but {first.name} is a "
                    f"{first.family} of width {first.hidden_size} and {other.name} a "
                    f"{other.family} of {other.hidden_size}. Name teachers of one architecture "
                    "and width, or set mt-bert.cofinetuning=0"
                )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the teacher's logits."""
        return ["teacher.logits"]

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> Tensor:
        """Return 1 / (1 + the teacher's loss on each sample)."""
        if batch.labels is None:
            raise MethodError("mt-bert needs labels, and a batch has none")
        loss = per_sample(hard_labels(teacher.prediction, batch.labels, batch.targets))
        return 1 / (1 + loss)
