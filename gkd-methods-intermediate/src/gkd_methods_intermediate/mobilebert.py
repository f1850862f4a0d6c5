"""MobileBERT: progressive knowledge transfer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, PositiveInt

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    ModelInfo,
    Models,
    Part,
    StageInfo,
    Step,
    Term,
    View,
    layer_pairs,
    mse,
    relation_kl,
    same_heads,
    same_width,
)

SMALLER = (
    "make the student smaller inside its blocks (student.ffn_size; with a teacher of type "
    "mobilebert also student.config.intra_bottleneck_size)"
)
"""The end of the advice of both checks."""


class MobileBERT(Method):
    """Learn the teacher's layers bottom-up, one at a time, with the layers below nearly frozen.

    L_l = MSE(H_s^l, H_t^g(l)) + KL(A_t^g(l) || A_s^l), feature map and attention transfer (section
    3.4), for the current layer l only, averaged over heads and non-padding positions; g is the
    layer map. Layers take turns from bottom to top (progressive knowledge transfer, section 3.5).
    Blocks below the current layer train at a fraction of the learning rate, or not at all; blocks
    above, the embedding and the head are frozen. The paper then distills the predictions: a stage
    with `soft` and `hard` in the recipe `mobilebert`.
    """

    name = "mobilebert"
    paper = "Sun, Yu, Song, Liu, Yang, Zhou, ACL 2020, arXiv:2004.02984"

    class Config(Method.Config):
        """Options of `mobilebert`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs. They are learned in this order.",
        )
        below: float = Field(
            0.1,
            ge=0,
            le=1,
            description="Learning rate factor of the blocks below the current one; 0 freezes them.",
        )
        budget: PositiveInt | Literal["even"] = Field(
            "even",
            description="Steps per layer; the last layer keeps training until the end. `even` "
            "divides the stage into equal parts, one per layer.",
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models with different widths or numbers of heads, and layers that do not exist."""
        student, teacher = models.pair
        layer_pairs(self.config.layers, student.layers, teacher.layers)
        width = f"Set student.hidden_size={teacher.hidden_size} and {SMALLER}"
        same_heads(models, self.name, f"Set student.heads={teacher.heads} and {SMALLER}")
        same_width(models, self.name, width)

    def on_stage_start(self, stage: StageInfo) -> None:
        """Say if the stage ends before the last layer is learned."""
        student, teacher = self.models.pair
        budget = self.config.budget
        layers = len(layer_pairs(self.config.layers, student.layers, teacher.layers))
        if budget == "even" or (layers - 1) * budget < stage.total_steps:
            return
        stage.say(
            f"mobilebert learns {layers} layers for {budget} steps each, and the stage has "
            f"{stage.total_steps}: it ends before the last ones are learned. Lower "
            "mobilebert.budget, or set it to 'even'"
        )

    def lr_factors(self, models: Models, step: Step) -> Mapping[Part, float]:
        """Freeze everything but the current block, and slow down the blocks below it."""
        student, teacher = models.pair
        below, (newest, _) = self._current(student, teacher, step)
        return {
            "embedding": 0.0,
            **dict.fromkeys(range(1, below + 1), self.config.below),
            **dict.fromkeys(range(newest + 1, student.layers + 1), 0.0),
            "head": 0.0,
        }

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read hidden states and attention of the current layer."""
        _, newest = self._current(*models.pair, step)
        for side, layer in zip(("student", "teacher"), newest, strict=True):
            yield f"{side}.hidden[{layer}]"
            yield f"{side}.attention[{layer}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare feature maps and attention distributions of the current layer."""
        _, (own, known) = self._current(student.model, teacher.model, step)
        over = batch.tokens
        return {
            "hidden": mse(student.hidden[own], teacher.hidden[known], over),
            "attention": relation_kl(student.attention[own], teacher.attention[known], over),
        }

    def _current(
        self, student: ModelInfo, teacher: ModelInfo, step: Step
    ) -> tuple[int, tuple[int, int]]:
        """Return the last block already learned, 0 if none, and the current pair of layers.

        Both depend on the step alone, so a resumed stage needs no saved state.
        """
        pairs = layer_pairs(self.config.layers, student.layers, teacher.layers)
        if self.config.budget == "even":
            done = step.index * len(pairs) // step.total
        else:
            done = step.index // self.config.budget
        newest = min(done, len(pairs) - 1)
        return pairs[newest - 1][0] if newest else 0, pairs[newest]
