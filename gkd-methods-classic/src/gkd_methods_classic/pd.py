"""Pre-trained distillation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gkd_core.api import Batch, Method, Models, Step, Term, View, soft_cross_entropy, soft_labels


class PD(Method):
    """Soft labels for a student that was pre-trained before distillation.

    L = CE(softmax(z_t), softmax(z_s)), without temperature or labels, so the transfer data may be
    unlabeled. It equals KL plus the teacher's entropy, which is its minimum. For regression it is
    the squared error between the two predictions.
    """

    name = "pd"
    paper = "Turc, Chang, Lee, Toutanova, 2019, arXiv:1908.08962"

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def softens_at(self, step: Step) -> Collection[float] | None:
        """Compare distributions as they are."""
        return [1.0]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the two predictions."""
        term = soft_labels(
            student.prediction,
            teacher.prediction,
            batch.targets,
            temperature=1.0,
            divergence=soft_cross_entropy,
        )
        return {"pd": term}
