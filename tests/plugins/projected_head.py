"""SimKD: the teacher's own head on the student's states, projected to the teacher's width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from gkd_core.api import Batch, Method, Models, Step, Term, View, hookimpl, soft_labels


class ProjectedHead(Method):
    """KL of the teacher's predictions from those of its head on projected student states."""

    name = "projected-head"
    paper = "Chen, Mei, Zhang, Wang, Feng, Chen, CVPR 2022, arXiv:2203.14001"
    same_tokenizer = True
    applies_head = True

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read what the student's head sees, and the teacher's logits."""
        whole_rows = models.student.predicted == "sample"
        return ["student.pooled" if whole_rows else "student.hidden[last].normed", "teacher.logits"]

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build the projection."""
        assert models.teacher is not None, "the method has a teacher"
        return {"map": nn.Linear(models.student.hidden_size, models.teacher.hidden_size)}

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions."""
        whole_rows = student.model.predicted == "sample"
        states = student.pooled if whole_rows else student.hidden.normed
        found = teacher.head(self.modules["map"](states))
        return {"projected-head": soft_labels(found, teacher.prediction, batch.targets, 1.0)}


@hookimpl
def gkd_register_methods() -> list[type[Method]]:
    """Register the method."""
    return [ProjectedHead]
