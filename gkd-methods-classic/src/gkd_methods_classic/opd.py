"""On-policy distillation: the teacher grades every token that the student writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from gkd_core.api import Batch, Method, Models, Step, Term, View, cross_entropy, importance


class OPD(Method):
    """The teacher's log-probability of each token that the student wrote, as a reward.

    The advantage of a token y is A = log p(y) - log q(y), a constant, and L = -w A log q(y),
    averaged over the student's tokens. Its gradient is an estimate of that of KL(q || p) from one
    token per position, so the teacher need not give a distribution. The value shown is -w A, the
    estimate of the divergence. The weight w = q(y) / d(y), a constant, is 1 for a student that has
    just written its text; d is what the token was drawn from.
    """

    name = "opd"
    paper = "Lu, Thinking Machines Lab, 2025, doi:10.64434/tml.20251026"
    kinds = ("causal-lm",)
    same_tokenizer = True
    on_policy = True

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the targets in rows that the student wrote."""
        return {"written": batch.targets.mask & batch.written_by("student").unsqueeze(1)}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Weigh the log-probability of each written token by its advantage."""
        over, labels = batch.items("written"), batch.require_labels()
        surprise = cross_entropy(student.prediction, labels, over).values
        known = cross_entropy(teacher.prediction, labels, over).values
        advantage = surprise.detach() - known
        term = Term((surprise - surprise.detach()) * advantage - advantage, over)
        return {"opd": term * importance(surprise, batch)}
