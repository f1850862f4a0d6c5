"""MT-BERT: teachers weighted per sample by their loss on the labels."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    MethodError,
    Models,
    StageInfo,
    Step,
    TeacherCombiner,
    View,
    hard_labels,
)
from gkd_methods_multiteacher import cofinetuning
from gkd_methods_multiteacher.samples import per_sample


class MTBERT(TeacherCombiner):
    """Sum the terms over the teachers, weighting each sample by how correct the teacher is on it.

    L = sum_i L_i / (1 + CE(y, z_t^i)), with one weight per teacher and sample. The paper weights
    only the predictions (`soft`), and adds hidden state and label losses unweighted. With
    `cofinetuning`, the teachers are first jointly fine-tuned on the labels with a shared head.
    """

    name = "mt-bert"
    paper = "C. Wu, F. Wu, Huang, Findings of ACL 2021, arXiv:2106.01023"
    needs_labels = True

    class Config(TeacherCombiner.Config):
        """Options of `mt-bert`."""

        cofinetuning: int = Field(
            0,
            ge=0,
            description="Epochs for which the teachers are fine-tuned on the labels before the "
            "student is trained, all with the first one's head; 0: no fine-tuning.",
        )

    config: Config

    def check(self) -> None:
        """Reject a shared head for language models and for teachers of different shape."""
        student = self.models[0].student
        if not self.config.cofinetuning:
            return
        if student.is_lm:
            raise MethodError(
                "mt-bert.cofinetuning shares a classification head, which a language model does "
                "not have. Set mt-bert.cofinetuning=0"
            )
        first, *others = [teacher for _, teacher in (one.pair for one in self.models)]
        for other in others:
            if (other.family, other.hidden_size) != (first.family, first.hidden_size):
                raise MethodError(
                    f"mt-bert.cofinetuning gives all teachers one head, but {first.name} is a "
                    f"{first.family} of width {first.hidden_size} and {other.name} a "
                    f"{other.family} of {other.hidden_size}. Name teachers of one architecture "
                    "and width, or set mt-bert.cofinetuning=0"
                )

    def on_stage_start(self, stage: StageInfo) -> None:
        """Fine-tune the teachers if asked to; in a resumed run, reload them."""
        if self.config.cofinetuning:
            cofinetuning.begin(stage, self.config.cofinetuning)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the teacher's logits."""
        return ["teacher.logits"]

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> Tensor:
        """Return 1 / (1 + the teacher's loss on each sample), `[B]`."""
        loss = per_sample(hard_labels(teacher.prediction, batch.require_labels(), batch.targets))
        return 1 / (1 + loss)
