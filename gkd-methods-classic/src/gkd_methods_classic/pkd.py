"""Patient knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    MethodError,
    Models,
    Schedule,
    Step,
    Term,
    View,
    layer_pairs,
    normalized_mse,
    same_width,
)


class PKD(Method):
    """Match the normalized [CLS] states of intermediate layers.

    L = beta sum_l || h_s^l / |h_s^l| - h_t^g(l) / |h_t^g(l)| ||^2 over all student blocks l except
    the last, whose state the prediction already constrains; g is the layer map (Eq. 7). Combine it
    with other terms: the paper's objective is `0.5*hard+0.5*soft+pkd`, the recipe `pkd`. Student
    and teacher must have the same hidden size.
    """

    name = "pkd"
    paper = "Sun, Cheng, Gan, Liu, EMNLP 2019, arXiv:1908.09355"
    kinds = (*Method.kinds, "multi-label", "token-classification", "span-extraction", "embedding")

    class Config(Method.Config):
        """Options of `pkd`."""

        layers: Literal["skip", "last"] | list[tuple[int, int]] = Field(
            "skip",
            description="Teacher layer of each student layer: `skip` (PKD-Skip) uses evenly spaced "
            "layers, `last` (PKD-Last) the last ones; or a list of [student, teacher] pairs.",
        )
        beta: Schedule = Field(Schedule.parse(100.0), description="Weight; may be a schedule.")
        reduction: Literal["mean", "sum"] = Field(
            "mean",
            description="`mean` over layers and hidden units, as in the released code, for which "
            "the paper's beta of 10 to 1000 was tuned; `sum` as printed in Eq. 7.",
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models with different hidden sizes and students without intermediate layers."""
        student, teacher = models.pair
        same_width(
            models,
            self.name,
            "Give the student the teacher's hidden size, or choose a method that projects",
        )
        if not self._pairs(student.layers, teacher.layers):
            raise MethodError(
                "pkd has no layer to match: the student has one block, and pkd skips the last one. "
                "Use a student with at least 2 layers (--student-layers), or drop pkd"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the [CLS] states of all matched layers of both models."""
        student, teacher = models.pair
        for own, known in self._pairs(student.layers, teacher.layers):
            yield f"student.hidden[{own}]|cls"
            yield f"teacher.hidden[{known}]|cls"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Sum the distances of the matched layers."""
        pairs = self._pairs(student.model.layers, teacher.model.layers)
        distances = [
            normalized_mse(student.hidden.cls[s], teacher.hidden.cls[t], batch.samples)
            for s, t in pairs
        ]
        per_unit = 1 / len(pairs) if self.config.reduction == "mean" else student.model.hidden_size
        return {"pkd": self.config.beta.at(step) * per_unit * Term.sum(distances)}

    def _pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        if isinstance(self.config.layers, list):
            return layer_pairs(self.config.layers, student_layers, teacher_layers)
        layer_map: LayerMap = "spaced" if self.config.layers == "skip" else "last"
        return layer_pairs(layer_map, student_layers, teacher_layers)[:-1]
