"""TMKD: one student head per teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gkd_core.api import Batch, MethodError, Models, Step, TeacherCombiner, View


class TMKD(TeacherCombiner):
    """Give the student one classification head per teacher; its own head is their average.

    L = 1/N sum_i L_i, where L_i uses the logits of head i, z_i = W_i h. The heads are stored as the
    student's own head W plus offsets, W_i = W + D_i - mean_j D_j, so that W is always their
    average: the student predicts with it and is saved as a plain model. Methods that read no
    teacher, such as `hard`, are computed once per head.
    """

    name = "tmkd"
    paper = "Z. Yang, Shou, Gong, Lin, Jiang, WSDM 2020, arXiv:1910.08381"
    splits_student = True
    weighs_samples = False

    def check(self) -> None:
        """Reject language modeling, whose head is as large as the vocabulary."""
        student = self.models[0].student
        if student.is_lm:
            raise MethodError(
                "tmkd gives the student a classification head per teacher, which a language "
                "model does not have. Use average(...)"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits and the input of the student's own head."""
        return ["student.logits", "student.pooled"]

    def build_modules(self) -> Mapping[str, nn.Module]:
        """Return each head's offset from the average, initialized to 0."""
        student = self.models[0].student
        heads = [nn.Linear(student.hidden_size, student.labels) for _ in self.models]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return {"heads": nn.ModuleList(heads)}

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return the weight of each head."""
        return 1 / len(self.models)

    def logits(self, number: int, student: View) -> Tensor:
        """Return the logits of one head, `[B, C]`."""
        heads = self.modules["heads"]
        assert isinstance(heads, nn.ModuleList)
        more = torch.stack([head(student.pooled) for head in heads])
        return student.logits + (more[number] - more.mean(0))
