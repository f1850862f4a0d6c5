"""`average`: the weighted mean over the teachers."""

from __future__ import annotations

from collections.abc import Iterator

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
        if weights and not all(map(any, self._ends())):
            raise MethodError("average has only weights of 0 at the start or the end of the stage")

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return the teacher's share.

        Raises:
            MethodError: No teacher has a weight in this step.
        """
        if not self.config.weights:
            return 1 / len(self.models)
        weights = [weight.at(step) for weight in self.config.weights]
        total = sum(weights)
        if not total:
            raise MethodError(
                f"average has only weights of 0 in step {step.index}. Let a weight of "
                "average.weights begin before the others end"
            )
        return weights[number] / total

    def _ends(self) -> Iterator[list[float]]:
        """Yield the weights at the start of the stage and, if its length is not needed, its end."""
        weights = self.config.weights
        yield [weight.start for weight in weights]
        if all(weight.relative for weight in weights):
            yield [weight.at(1, 1) for weight in weights]
