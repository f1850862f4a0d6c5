"""SID: stacked internal distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    Models,
    StageInfo,
    Step,
    Term,
    View,
    cosine,
    layer_pairs,
    relation_kl,
    same_heads,
    same_width,
    soft_labels,
    sum_samples,
)


@dataclass
class Measured:
    """The cosine losses of one optimizer step, over its micro-batches and all ranks.

    Attributes:
        step: Index of the step.
        total: Sum of the losses over samples and layers.
        samples: Number of samples.
    """

    step: int = -1
    total: Tensor | float = 0.0
    samples: Tensor | float = 0.0


class SID(Method):
    """Learn the teacher's layers from the bottom up, adding one at a time, then its predictions.

    L = sum_(l <= k) KL(A_t^g(l) || A_s^l) + 1 - cos(h_s^l, h_t^g(l)), with A the attention
    distributions, averaged over heads and non-padding positions, h the [CLS] state and g the layer
    map. Layer k + 1 is unlocked once a budget of steps is spent or the cosine losses are small
    enough. After the last layer only the soft labels are learned, with T = 1.
    """

    name = "sid"
    paper = "Aguilar, Ling, Zhang, Yao, Fan, Guo, AAAI 2020, arXiv:1910.03723"
    gradual_unfreezing = True

    class Config(Method.Config):
        """Options of `sid`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs. They are unlocked in this order.",
        )
        variant: Literal["stacked", "progressive"] = Field(
            "stacked",
            description="`stacked`: the losses of lower layers remain when one is unlocked; "
            "`progressive`: only the newest layer is learned (the paper's PID).",
        )
        budget: PositiveInt | Literal["even"] = Field(
            "even",
            description="Steps after which the next layer is unlocked at the latest; `even` "
            "divides the stage into equal parts, one per layer and one for the predictions.",
        )
        threshold: float = Field(
            0.0,
            ge=0,
            description="Unlock the next layer earlier if the cosine losses of a step, summed over "
            "the layers being learned, are below this. 0: never.",
        )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._newest = 1
        # When the newest layer was unlocked, in units of 1 / (number of phases) steps, so that
        # `even` phases end without rounding.
        self._since = 0
        self._measured = Measured()

    def check(self, models: Models) -> None:
        """Reject models with different widths or numbers of heads, and layers that do not exist."""
        self._pairs(models)
        _, teacher = models.pair
        same_heads(
            models,
            self.name,
            f"Set student.heads={teacher.heads}, or use minilmv2, which works with any number",
        )
        same_width(
            models,
            self.name,
            f"Set student.hidden_size={teacher.hidden_size}, or use a method for other widths, "
            "such as tinybert or minilmv2",
        )

    def on_stage_start(self, stage: StageInfo) -> None:
        """Say if the stage ends before the predictions are learned."""
        budget, layers = self.config.budget, len(self._pairs(self.models))
        if budget == "even" or self.config.threshold or layers * budget < stage.total_steps:
            return
        stage.say(
            f"sid learns {layers} layers for {budget} steps each, and the stage has "
            f"{stage.total_steps}: it ends before the predictions are learned. Lower sid.budget, "
            "or set it to 'even'"
        )

    def begin_step(self, step: Step) -> None:
        """Unlock the layers that are due."""
        self._advance(len(self._pairs(self.models)), step)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read attention and [CLS] states of the layers being learned, and finally the logits."""
        pairs = self._pairs(models)
        for student, teacher in self._compared(pairs):
            yield f"student.attention[{student}]"
            yield f"teacher.attention[{teacher}]"
            yield f"student.hidden[{student}]|cls"
            yield f"teacher.hidden[{teacher}]|cls"
        if self._newest > len(pairs):
            yield "student.logits"
            yield "teacher.logits"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the layers being learned, or the predictions."""
        compared = self._compared(self._pairs(Models(student.model, teacher.model)))
        if not compared:
            soft = soft_labels(student.prediction, teacher.prediction, batch.targets, 1.0)
            return {"soft": soft}
        attention = [
            relation_kl(student.attention[s], teacher.attention[t], batch.tokens)
            for s, t in compared
        ]
        states = [
            cosine(student.hidden.cls[s], teacher.hidden.cls[t], batch.samples) for s, t in compared
        ]
        terms = {"attention": Term.sum(attention), "cosine": Term.sum(states)}
        if self.config.threshold:
            self._measure(terms["cosine"], batch, step)
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Return the progress and the measurements that the next unlocking depends on."""
        measured = self._measured
        return {
            "newest": self._newest,
            "since": self._since,
            "measured": [measured.step, float(measured.total), float(measured.samples)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        self._newest, self._since = state["newest"], state["since"]
        self._measured = Measured(*state["measured"])

    def _pairs(self, models: Models) -> Sequence[tuple[int, int]]:
        """Return the pairs of layers, in the order in which they are unlocked."""
        student, teacher = models.pair
        return layer_pairs(self.config.layers, student.layers, teacher.layers)

    def _compared(self, pairs: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Return the pairs of layers to compare now; none once all have been learned."""
        if self._newest > len(pairs):
            return []
        return pairs[0 if self.config.variant == "stacked" else self._newest - 1 : self._newest]

    def _measure(self, cosines: Term, batch: Batch, step: Step) -> None:
        """Add the losses of a micro-batch to those of its step."""
        if self._measured.step != step.index:
            self._measured = Measured(step.index)
        each = torch.stack([cosines.values, torch.ones_like(cosines.values)], 1)
        total, samples = sum_samples(each, batch).unbind()
        self._measured.total += total
        self._measured.samples += samples

    def _advance(self, layers: int, step: Step) -> None:
        """Unlock the layers that are due at the beginning of a step."""
        phases = layers + 1
        now = step.index * phases
        if self._measured.step < step.index and self._is_small():
            self._newest, self._since = self._newest + 1, now
            self._measured = Measured()
        budget = step.total if self.config.budget == "even" else self.config.budget * phases
        while self._newest <= layers and now - self._since >= budget:
            self._newest, self._since = self._newest + 1, self._since + budget
            self._measured = Measured()

    def _is_small(self) -> bool:
        measured = self._measured
        return float(measured.total) < self.config.threshold * float(measured.samples)
