"""`autodisc`: all candidate assistants are trained at once, as nested slices of one model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Method,
    MethodError,
    Models,
    Operation,
    Pass,
    Replace,
    Slicer,
    Step,
    Term,
    View,
    cut_ordered,
    mse,
    soft_labels,
)
from gkd_core.students.scale import MULTIPLE
from gkd_core.training.checkpoint import load_weights
from gkd_methods_multiteacher.autodisc.selection import CandidateCriterion, CandidateScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHOLE = 1.0
SMALLEST = 3
"""Of the smallest candidates, so many are in every step of a sampled sandwich."""

STATES = 6
"""Hidden states compared beside the embeddings."""

ASSISTANT = "assistant.safetensors"
"""File with the weights of the best trade-off, in the directory of the stage."""


def _percents(scales: list[float]) -> list[float]:
    """Refuse scales that are not different whole percents, from large to small."""
    for scale in scales:
        if not 0 < scale <= 1 or abs(100 * scale - round(100 * scale)) > 1e-9:
            raise ValueError(f"a scale is a whole percent above 0 and at most 1, not {scale:g}")
    if any(first <= second for first, second in pairwise(scales)):
        raise ValueError("scales go from large to small, each once")
    return scales


Scales = Annotated[list[float], Field(min_length=1), AfterValidator(_percents)]


class AutoDisc(Method):
    """Train nested slices of the student at once, and hand on the best assistant among them.

    L = 1/|S| sum_{s in S} 1/2 (MSE(H_s, H_t) + T^2 KL(p_t || p_s)): every candidate of the sandwich
    S learns from the whole teacher. Candidates are slices of the student at different scales: the
    share of heads and of neurons that they keep. The stage hands on the one with the best trade-off
    between its performance and its scale, ordered for the student's slice; the recipe `autodisc`
    distils that student from it. With `scales = [1.0]` it is the same loss for a whole student.
    """

    name = "autodisc"
    paper = "Zhang, Yang, Wang, Song, 2022, arXiv:2205.14570"
    needs_labels = True
    same_tokenizer = True

    class Config(Method.Config):
        """Options of `autodisc`."""

        scales: Scales = Field(
            [0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05],
            description="Shares of heads and neurons that the candidates keep, from large to "
            "small; 1 is the whole student.",
        )
        target: Annotated[float, Field(gt=0, le=1)] = Field(
            0.1, description="Scale of the student that the assistant is for."
        )
        trade_off: Annotated[float, Field(ge=0)] = Field(
            0.2, description="Lambda: what a smaller scale is worth, in units of performance."
        )
        sandwich: Literal["all", "strided", "random"] = Field(
            "all",
            description="Candidates of a step: all; or the largest, the three smallest and some "
            "others, at an even stride or at random.",
        )
        others: Annotated[int, Field(ge=0)] = Field(
            7, description="How many others a sampled sandwich has."
        )
        temperature: Annotated[float, Field(gt=0)] = Field(
            1.0, description="What the logits of both models are divided by."
        )
        multiple: Annotated[int, Field(ge=1)] = Field(
            MULTIPLE, description="Neurons of a block are a multiple of this."
        )
        calibration: Annotated[int, Field(ge=1)] = Field(
            512, description="Training rows on which importance is measured."
        )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.slicer: Slicer | None = None
        self.trial = CandidateScores()
        self._masks: dict[tuple[float, str, int], Tensor] = {}

    @property
    def choice(self) -> CandidateCriterion:
        """How the candidates are compared."""
        return CandidateCriterion(self.config.trade_off, self.config.target)

    @property
    def searches(self) -> bool:
        """Whether there are candidates, and not the whole student alone."""
        return self.config.scales != [WHOLE]

    def check(self, models: Models) -> None:
        """Refuse a student whose states cannot be compared with the teacher's."""
        student, teacher = models.student, models.teacher
        if teacher is not None and student.hidden_size != teacher.hidden_size:
            raise MethodError(
                f"autodisc compares hidden states, but the student's have width "
                f"{student.hidden_size} and those of the teacher '{teacher.name}' "
                f"{teacher.hidden_size}. Leave student.hidden_size out: heads and neurons make the "
                "student smaller (student.scale)"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read hidden states and predictions of the teacher and of each candidate of the step."""
        if models.teacher is None:
            return
        mine, theirs = zip(*compared(models.student.layers, models.teacher.layers), strict=True)
        yield f"teacher.hidden[{','.join(map(str, theirs))}]"
        yield "teacher.logits"
        for scale in self.members(step):
            yield f"student@{at(scale)}.hidden[{','.join(map(str, mine))}]"
            yield f"student@{at(scale)}.logits"

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Run every candidate of the step."""
        return [Pass(at(scale)) for scale in self.members(step)]

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Multiply by 0 what a candidate does not have: it computes what the slice would."""
        for scale in self.members(step):
            for site, layer, by in self.masking(scale, models.student.layers):
                yield Replace(f"student@{at(scale)}.{site}[{layer}]", by)

    def masking(
        self, scale: float, layers: int
    ) -> Iterable[tuple[str, int, Callable[[Tensor], Tensor]]]:
        """Yield the sites of a candidate, their layers, and what is made of the tensors there."""
        if scale == WHOLE:
            return
        for site in ("context", "neurons"):
            for layer in range(1, layers + 1):
                yield site, layer, partial(self._masked, scale, site, layer)

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Average the candidates' losses."""
        members = self.members(step)
        views = [student.at(at(scale)) for scale in members]
        pairs = compared(student.model.layers, teacher.model.layers)
        hidden = [
            mse(view.hidden[mine], teacher.hidden[theirs], batch.tokens)
            for view in views
            for mine, theirs in pairs
        ]
        soft = [
            soft_labels(view.prediction, teacher.prediction, batch.targets, self.config.temperature)
            for view in views
        ]
        return {"hidden": _half_mean(hidden), "soft": _half_mean(soft)}

    def members(self, step: Step) -> list[float]:
        """Return the scales of the sandwich of a step; the same whoever asks, on every rank."""
        scales, count = self.config.scales, self.config.others
        middle = scales[1:-SMALLEST]
        if self.config.sandwich == "all" or count >= len(middle):
            return list(scales)
        if self.config.sandwich == "strided":
            chosen = [middle[i * len(middle) // count] for i in range(count)]
        else:
            chosen = random.Random(f"{step.stage} {step.index}").sample(middle, count)
        return sorted({scales[0], *chosen, *scales[-SMALLEST:]}, reverse=True)

    def finalize_student(self, student: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the assistant, ordered for the student's slice."""
        if not self.searches or self.slicer is None or self.trial.selected is None:
            return student
        load_weights(student, directory / ASSISTANT)
        scale = self.trial.selected
        slices = {s for s in (*self.config.scales, self.config.target) if s <= scale}
        return cut_ordered(student, self.slicer, scale, sorted(slices, reverse=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the order of heads and neurons, and what is known of the candidates."""
        trial = asdict(self.trial)
        for name in ("metrics", "performances"):
            trial[name] = list(trial[name].items())
        return {"slicer": self.slicer.as_tree() if self.slicer else None, "trial": trial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.slicer = Slicer.parse(state["slicer"]) if state["slicer"] else None
        trial = dict(state["trial"])
        for name in ("metrics", "performances"):
            trial[name] = dict(trial[name])
        self.trial = CandidateScores(**trial)
        self._masks.clear()

    def _masked(self, scale: float, site: str, layer: int, tensor: Tensor) -> Tensor:
        """Multiply `[..., units * size]` by the mask of a candidate."""
        key = (scale, site, layer)
        if key not in self._masks:
            self._masks[key] = self._mask(*key).to(tensor.device, tensor.dtype)
        mask = self._masks[key]
        return tensor * mask.to(tensor.dtype).repeat_interleave(tensor.shape[-1] // len(mask))

    def _mask(self, scale: float, site: str, layer: int) -> Tensor:
        if self.slicer is None:
            raise MethodError(
                "autodisc cannot be simulated: the heads and neurons of a candidate follow from "
                "their importance, which a run measures before its first step. Plan with a match "
                "of hidden states and logits"
            )
        kept = self.slicer.kept(self.slicer.widths(scale))
        of_heads = site == "context"
        ranking = self.slicer.heads if of_heads else self.slicer.neurons
        mask = torch.zeros(len(ranking.order[layer - 1]))
        mask[list((kept.heads if of_heads else kept.neurons)[layer - 1])] = 1
        return mask


def at(scale: float) -> str:
    """Return the name of a candidate's pass."""
    return f"scale-{round(100 * scale)}"


def compared(student: int, teacher: int) -> list[tuple[int, int]]:
    """Return the hidden states that are compared: the embeddings and up to six, evenly spaced.

    Args:
        student: Number of its blocks.
        teacher: Number of its blocks.
    """
    count = min(STATES, student, teacher)
    shares = [number / count for number in range(count + 1)]
    return [(round(share * student), round(share * teacher)) for share in shares]


def _half_mean(terms: Sequence[Term]) -> Term:
    return (0.5 / len(terms)) * sum(terms[1:], terms[0])
