"""A combiner that trusts a teacher where its prediction is certain."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from gkd_core.api import Batch, Models, Step, TeacherCombiner, View, hookimpl, soft_cross_entropy


class Confidence(TeacherCombiner):
    """Weight each teacher, in each sample, by how certain its prediction is.

    The weight is 1 - H / ln C, with the entropy H of the teacher's C probabilities, divided by the
    number of teachers; in language modeling, H is the mean over the sample's targets.
    """

    name = "confidence"
    paper = "after Kwon, Na, Lee, Kim, ICASSP 2020"
    kinds = ("classification", "multiple-choice", "masked-lm", "causal-lm")

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the teacher's logits."""
        return ["teacher.logits"]

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> Tensor:
        """Return the teacher's certainty in each sample."""
        targets, logits = batch.view(teacher.model.name).targets, teacher.prediction
        # A distribution's cross-entropy with itself is its entropy.
        entropy = soft_cross_entropy(logits, logits, targets).values
        if entropy.dim() == 2:
            entropy = entropy.sum(1) / targets.mask.sum(1).clamp(min=1)
        return (1 - entropy / math.log(logits.shape[-1])) / len(self.models)


@hookimpl
def gkd_register_combiners() -> list[type[TeacherCombiner]]:
    """Register the combiner."""
    return [Confidence]
