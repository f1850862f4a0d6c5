"""Training on the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gkd_core.api import Batch, Method, Models, Step, Term, View, hard_labels


class Hard(Method):
    """The labels alone: cross-entropy for classes and tokens, squared error for regression.

    L = CE(y, z_s). No teacher runs. `--method hard` is plain fine-tuning or pre-training; combined
    with other methods, as in `pkd+soft+hard`, it is the label term.
    """

    name = "hard"
    paper = "Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2 (the second objective)"
    kinds = (
        *Method.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
        "similarity",
    )
    needs_labels = True
    teachers = "none"

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the student's logits."""
        return ["student.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student's prediction with the labels."""
        return {"hard": hard_labels(student.prediction, batch.require_labels(), batch.targets)}
