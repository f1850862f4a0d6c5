"""Continuation-KD: from a smoothed regression of logits to the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from gkd_core.api import Batch, Method, MethodError, Models, Schedule, Step, Term, View, hard_labels
from gkd_methods_classic.annealing_kd import annealing, scaled_distance


class ContinuationKD(Method):
    """Fit the teacher's scaled logits up to a margin, and turn to the labels as training goes on.

    L = psi CE(y, z_s) + (1 - psi) max(0, || z_s - phi z_t ||^2 - m phi), for each sample, with
    phi = 1 - (T - 1) / T_max (Eq. 3 to 5). T falls from T_max to 1 in equal parts of the stage, psi
    rises, and is 1 for the last part. Within the margin m phi the teacher's noise is not learnt.
    """

    name = "continuation-kd"
    paper = (
        "Jafari, Kobyzev, Rezagholizadeh, Poupart, Ghodsi, Findings of EMNLP 2022, arXiv:2212.05998"
    )
    needs_labels = True
    same_tokenizer = True

    class Config(Method.Config):
        """Options of `continuation-kd`."""

        max_temperature: PositiveInt = Field(
            10, description="T_max: how many equal parts the annealing has."
        )
        margin: NonNegativeFloat = Field(
            1.0, description="m: a distance of up to m phi counts as none."
        )
        psi: Schedule = Field(
            Schedule.parse("linear(0 -> 0.75)"),
            description="Weight of the labels until `labels_from`; the teacher's is 1 - psi. The "
            "paper's i / 40 in 30 epochs.",
        )
        labels_from: float = Field(
            0.6667,
            ge=0,
            le=1,
            description="Share of the stage after which the labels alone count (psi = 1). The "
            "paper's 20 of 30 epochs.",
        )
        reduction: Literal["sum", "mean"] = Field(
            "sum", description="`sum` over the logits of a prediction, as in the paper, or `mean`."
        )

        @field_validator("psi")
        @classmethod
        def _is_a_share(cls, psi: Schedule) -> Schedule:
            if not (0 <= psi.start <= 1 and 0 <= psi.end <= 1):
                raise ValueError(f"must stay between 0 and 1, got {psi}")
            return psi

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read both logits; the teacher's no more once the labels alone count."""
        yield "student.logits"
        if self._psi(step) < 1:
            yield "teacher.logits"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student with the scaled logits of the teacher and with the labels."""
        if batch.labels is None:
            raise MethodError("continuation-kd needs labels, and a batch has none")
        psi = self._psi(step)
        hard = psi * hard_labels(student.prediction, batch.labels, batch.targets)
        if psi == 1:
            return {"hard": hard}
        factor = annealing(step, self.config.max_temperature)
        distance = scaled_distance(student, teacher, batch.targets, factor, self.config.reduction)
        beyond = (distance.values - self.config.margin * factor).clamp(min=0)
        return {"soft": (1 - psi) * Term(beyond, distance.over), "hard": hard}

    def _psi(self, step: Step) -> float:
        if step.index >= self.config.labels_from * step.total:
            return 1.0
        return self.config.psi.at(step.index, step.total)
