"""MobileBERT: progressive knowledge transfer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, PositiveInt

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    MethodError,
    ModelInfo,
    Models,
    Part,
    Step,
    Term,
    View,
    layer_pairs,
    mse,
    relation_kl,
)


class MobileBERT(Method):
    """Learn the teacher's layers from the bottom up, each alone, what is below almost at rest.

    L_l = MSE(H_s^l, H_t^g(l)) + KL(A_t^g(l) || A_s^l), feature map and attention transfer (section
    3.4), of the newest layer l only; the mean is over heads and over the positions that are not
    padding, g is the layer map. One layer after the other is the newest (progressive knowledge
    transfer, section 3.5). Blocks below learn at a fraction of the rate, or not at all; those
    above, the embedding and the head are frozen. The predictions, which the paper distils
    afterwards, are a stage with `soft` and `hard` in the recipe `mobilebert`.
    """

    name = "mobilebert"
    paper = "Sun, Yu, Song, Liu, Yang, Zhou, ACL 2020, arXiv:2004.02984"

    class Config(Method.Config):
        """Options of `mobilebert`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs. They are learnt in this order.",
        )
        below: float = Field(
            0.1,
            ge=0,
            le=1,
            description="Factor of the learning rate of the blocks below those being learnt; 0 "
            "freezes them.",
        )
        budget: PositiveInt | Literal["even"] = Field(
            "even",
            description="Steps for which a layer is the newest; the last one remains so. `even` "
            "divides the stage into equal parts, one for each layer.",
        )

    config: Config

    def check(self, models: Models) -> None:
        """Refuse models of different width or number of heads, or layers that are not there."""
        student, teacher = models.student, models.teacher
        if teacher is None:
            return
        layer_pairs(self.config.layers, student.layers, teacher.layers)
        for what, setting, learned, known in (
            ("number of heads", "heads", student.heads, teacher.heads),
            ("hidden size", "hidden_size", student.hidden_size, teacher.hidden_size),
        ):
            if learned != known:
                raise MethodError(
                    f"mobilebert compares attention head by head and hidden states as they are, "
                    f"but the student's {what} is {learned} and that of the teacher "
                    f"'{teacher.name}' {known}. Set student.{setting}={known} and make the student "
                    "smaller inside of its blocks (student.ffn_size; with a teacher of type "
                    "mobilebert also student.config.intra_bottleneck_size)"
                )

    def lr_factors(self, models: Models, step: Step) -> Mapping[Part, float]:
        """Freeze what is not being learnt, or nearly."""
        if models.teacher is None:
            return {}
        below, newest = self._learnt(models.student, models.teacher, step)
        return {
            "embedding": 0.0,
            **dict.fromkeys(range(1, below + 1), self.config.below),
            **dict.fromkeys(range(newest[0] + 1, models.student.layers + 1), 0.0),
            "head": 0.0,
        }

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read hidden states and attention of the newest layer."""
        if models.teacher is None:
            return
        _, newest = self._learnt(models.student, models.teacher, step)
        for side, layer in zip(("student", "teacher"), newest, strict=True):
            yield f"{side}.hidden[{layer}]"
            yield f"{side}.attention[{layer}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare feature maps and attention distributions of the newest layer."""
        _, (own, known) = self._learnt(student.model, teacher.model, step)
        over = batch.tokens
        return {
            "hidden": mse(student.hidden[own], teacher.hidden[known], over),
            "attention": relation_kl(student.attention[own], teacher.attention[known], over),
        }

    def _learnt(
        self, student: ModelInfo, teacher: ModelInfo, step: Step
    ) -> tuple[int, tuple[int, int]]:
        """Return the last block that was learnt before, 0 if none, and the newest pair of layers.

        It follows from the step alone, so that a resumed stage needs no memory of it.
        """
        pairs = layer_pairs(self.config.layers, student.layers, teacher.layers)
        if self.config.budget == "even":
            done = step.index * len(pairs) // step.total
        else:
            done = step.index // self.config.budget
        newest = min(done, len(pairs) - 1)
        return pairs[newest - 1][0] if newest else 0, pairs[newest]
