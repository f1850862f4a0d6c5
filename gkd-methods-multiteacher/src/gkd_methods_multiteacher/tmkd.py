"""A head of the student for each teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gkd_core.api import Batch, MethodError, Models, Step, TeacherCombiner, View


class TMKD(TeacherCombiner):
    """Give the student a classification head for each teacher; the average of all is its own.

    L = 1/N sum_i L_i, where L_i sees the logits of head i, z_i = W_i h. The heads are kept as the
    student's own head and what each has more than the average of all, W_i = W + D_i - mean_j D_j.
    So W is always their average: the student predicts with it, and is saved as the plain model it
    is. Methods that read no teacher, such as `hard`, are asked once for each head.
    """

    name = "tmkd"
    paper = "Z. Yang, Shou, Gong, Lin, Jiang, WSDM 2020, arXiv:1910.08381"
    splits_student = True

    def check(self) -> None:
        """Refuse language modelling, where the head is the vocabulary."""
        student = self.models[0].student
        if student.labels == student.vocab_size:
            raise MethodError(
                "tmkd gives the student a head of classes for each teacher, which a language "
                "model has not. Use average(...)"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of the student's own head, and what goes into it."""
        return ["student.logits", "student.pooled"]

    def build_modules(self) -> Mapping[str, nn.Module]:
        """Return what each head adds to the average: nothing at first."""
        student = self.models[0].student
        heads = [nn.Linear(student.hidden_size, student.labels) for _ in self.models]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return {"heads": nn.ModuleList(heads)}

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return the share of a head."""
        return 1 / len(self.models)

    def logits(self, number: int, student: View) -> Tensor:
        """Return the logits of one head."""
        heads = self.modules["heads"]
        assert isinstance(heads, nn.ModuleList)
        more = torch.stack([head(student.pooled) for head in heads])
        return student.logits + (more[number] - more.mean(0))
