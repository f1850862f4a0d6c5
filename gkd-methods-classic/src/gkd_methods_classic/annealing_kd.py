"""Annealing-KD: regression on the teacher's logits, annealed from small to full scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, PositiveInt

from gkd_core.api import Batch, Items, Method, Models, Step, Term, View, logits_mse

Reduction = Literal["sum", "mean"]
"""How the squared differences of a prediction's logits become one distance."""


class AnnealingKD(Method):
    """Fit the teacher's logits, scaled by a factor that rises to 1 in equal steps.

    L = || z_s - Phi(T) z_t ||^2 with Phi(T) = 1 - (T - 1) / T_max; T decreases from T_max to 1
    over equal parts of the stage. This is the paper's first stage; the second is `hard`, starting
    from the best student of the first, as in the recipe `annealing-kd`.
    """

    name = "annealing-kd"
    paper = "Jafari, Rezagholizadeh, Sharma, Ghodsi, EACL 2021, arXiv:2104.07163"

    class Config(Method.Config):
        """Options of `annealing-kd`."""

        max_temperature: PositiveInt = Field(
            7, description="T_max: number of equal parts in the stage."
        )
        reduction: Reduction = Field(
            "sum", description="`sum` over the logits of a prediction, as in the paper, or `mean`."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the student's logits with the teacher's scaled logits."""
        factor = annealing(step, self.config.max_temperature)
        distance = scaled_distance(student, teacher, batch.targets, factor, self.config.reduction)
        return {"annealing-kd": distance}


def annealing(step: Step, max_temperature: int) -> float:
    """Return Phi(T) = 1 - (T - 1) / T_max, where T decreases from T_max to 1 over the stage.

    T is computed in integers so that rounding cannot delay a change by a step.
    """
    temperature = max(1, max_temperature - step.index * max_temperature // step.total)
    return 1 - (temperature - 1) / max_temperature


def scaled_distance(
    student: View, teacher: View, over: Items, factor: float, reduction: Reduction
) -> Term:
    """Return || z_s - factor z_t ||^2, or its mean over the logits of each prediction.

    Logit columns that only one of two padded vocabularies has are ignored.

    Args:
        student: The student, with logits `[*items, C]`.
        teacher: The teacher, with logits `[*items, C]`; in language modeling C may differ.
        over: The predictions.
        factor: Multiplier of the teacher's logits.
        reduction: `sum` or `mean`, over the C logits.
    """
    learned, known = student.prediction, teacher.prediction
    distance = logits_mse(learned, known, over, factor)
    if reduction == "mean":
        return distance
    return min(learned.shape[-1], known.shape[-1]) * distance
