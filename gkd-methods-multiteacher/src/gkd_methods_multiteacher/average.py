"""`average`: the weighted mean over the teachers."""

from __future__ import annotations

from pydantic import Field

from gkd_core.api import Batch, MethodError, Schedule, Step, TeacherCombiner, View


class Average(TeacherCombiner):
    """Average the terms over the teachers, each with a fixed or scheduled weight.

    L = sum_i w_i L_i / sum_i w_i. This is the default for methods outside parentheses if there are
    several teachers.
    """

    name = "average"
    paper = "You, Xu, Xu, Tao, KDD 2017, doi:10.1145/3097983.3098135"
    weighs_samples = False
    kinds = (
        *TeacherCombiner.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
        "embedding",
    )

    class Config(TeacherCombiner.Config):
        """Options of `average`."""

        weights: list[Schedule] = Field(
            [],
            description="Weights of the teachers, in order: numbers or schedules, normalized to "
            "sum to 1; equal if empty.",
        )

    config: Config

    def check(self) -> None:
        """Reject weights that are negative, all 0, or not one per teacher."""
        weights, count = self.config.weights, len(self.models)
        if weights and len(weights) != count:
            raise MethodError(f"average has {len(weights)} weights for {count} teachers")
        if any(min(weight.start, weight.end) < 0 for weight in weights):
            raise MethodError(
                "average has a negative weight, which would train the student away from a teacher"
            )
        if weights and not all(sum(w.at(step, 1) for w in weights) for step in (0, 1)):
            raise MethodError("average has only weights of 0 at the start or the end of the stage")

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return the teacher's share."""
        if not self.config.weights:
            return 1 / len(self.models)
        weights = [weight.at(step) for weight in self.config.weights]
        return weights[number] / sum(weights)
