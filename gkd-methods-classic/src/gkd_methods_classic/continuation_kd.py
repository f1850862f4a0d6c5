"""Continuation-KD: from smoothed regression on the logits to the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field, NonNegativeFloat, PositiveInt

from gkd_core.api import Batch, Method, Models, Schedule, Share, Step, Term, View, hard_labels
from gkd_methods_classic.annealing_kd import Reduction, annealing, scaled_distance


class ContinuationKD(Method):
    """Fit the teacher's scaled logits up to a margin, then shift gradually to the labels.

    L = psi CE(y, z_s) + (1 - psi) max(0, || z_s - phi z_t ||^2 - m phi) per sample, with
    phi = 1 - (T - 1) / T_max (Eq. 3 to 5). T decreases from T_max to 1 over equal parts of the
    stage; psi increases and is 1 in the last part. The margin m phi keeps the student from learning
    the teacher's noise.
    """

    name = "continuation-kd"
    paper = (
        "Jafari, Kobyzev, Rezagholizadeh, Poupart, Ghodsi, Findings of EMNLP 2022, arXiv:2212.05998"
    )
    needs_labels = True

    class Config(Method.Config):
        """Options of `continuation-kd`."""

        max_temperature: PositiveInt = Field(
            10, description="T_max: number of equal parts in the annealing."
        )
        margin: NonNegativeFloat = Field(1.0, description="m: distances of up to m phi count as 0.")
        psi: Share = Field(
            Schedule.parse("linear(0 -> 0.75)"),
            description="Weight of the labels until `labels_from`; the teacher's is 1 - psi. "
            "Default: the paper's i / 40 over 30 epochs.",
        )
        labels_from: float = Field(
            0.6667,
            ge=0,
            le=1,
            description="Share of the stage after which only the labels count (psi = 1). Default: "
            "the paper's 20 of 30 epochs.",
        )
        reduction: Reduction = Field(
            "sum", description="`sum` over the logits of a prediction, as in the paper, or `mean`."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models; once only the labels count, those of the student."""
        yield "student.logits"
        if self._psi(step) < 1:
            yield "teacher.logits"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student's logits with the teacher's scaled logits and with the labels."""
        psi = self._psi(step)
        hard = psi * hard_labels(student.prediction, batch.require_labels(), batch.targets)
        if psi == 1:
            return {"hard": hard}
        factor = annealing(step, self.config.max_temperature)
        distance = scaled_distance(student, teacher, batch.targets, factor, self.config.reduction)
        beyond = (distance.values - self.config.margin * factor).clamp(min=0)
        return {"soft": (1 - psi) * Term(beyond, distance.over), "hard": hard}

    def _psi(self, step: Step) -> float:
        if step.index >= self.config.labels_from * step.total:
            return 1.0
        return self.config.psi.at(step)
