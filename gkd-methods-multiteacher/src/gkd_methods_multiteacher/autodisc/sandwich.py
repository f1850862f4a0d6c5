"""`autodisc`: train all candidate assistants at once as nested slices of one model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
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
    StageInfo,
    Step,
    Term,
    View,
    cut_ordered,
    load_weights,
    mse,
    same_width,
    soft_labels,
)
from gkd_methods_multiteacher.autodisc import lifecycle
from gkd_methods_multiteacher.autodisc.selection import CandidateCriterion, CandidateScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHOLE = 1.0
SMALLEST = 3
"""Number of smallest candidates that are in every step of a sampled sandwich."""

STATES = 6
"""Maximum number of hidden states compared in addition to the embeddings."""

MULTIPLE = 8
"""The neurons of a block are a multiple of this number, as in the released code."""


def _percents(scales: list[float]) -> list[float]:
    """Reject scales that are not distinct whole percentages from large to small."""
    for scale in scales:
        if not 0 < scale <= 1 or abs(100 * scale - round(100 * scale)) > 1e-9:
            raise ValueError(
                f"a scale must be a whole percentage above 0 and at most 1, not {scale:g}"
            )
    if any(first <= second for first, second in pairwise(scales)):
        raise ValueError("scales must be distinct and go from large to small")
    return scales


Scales = Annotated[list[float], Field(min_length=1), AfterValidator(_percents)]


class AutoDisc(Method):
    """Train nested slices of the student at once and return the best assistant among them.

    L = 1/|S| sum_{s in S} 1/2 (MSE(H_s, H_t) + T^2 KL(p_t || p_s)): every candidate in the sandwich
    S learns from the whole teacher. Candidates are slices of the student at different scales, the
    share of heads and neurons that they keep. The stage outputs the one with the best trade-off
    between performance and scale, ordered for the student's slice; the recipe `autodisc` distills
    the student from it. With `scales = [1.0]` it is the same loss for a whole student.
    """

    name = "autodisc"
    paper = "Zhang, Yang, Wang, Song, 2022, arXiv:2205.14570"
    needs_labels = True

    class Config(Method.Config):
        """Options of `autodisc`."""

        scales: Scales = Field(
            [0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05],
            description="Shares of heads and neurons kept by the candidates, from large to small; "
            "1 is the whole student.",
        )
        target: Annotated[float, Field(gt=0, le=1)] = Field(
            0.1, description="Scale of the student that the assistant is for."
        )
        trade_off: Annotated[float, Field(ge=0)] = Field(
            0.2, description="Lambda: value of a smaller scale in units of performance."
        )
        sandwich: Literal["all", "strided", "random"] = Field(
            "all",
            description="Candidates in a step: `all`; or the largest, the three smallest and some "
            "others, `strided` evenly or at `random`.",
        )
        others: Annotated[int, Field(ge=0)] = Field(
            7, description="Number of other candidates in a sampled sandwich."
        )
        temperature: Annotated[float, Field(gt=0)] = Field(
            1.0, description="T: the logits of both models are divided by it."
        )
        multiple: Annotated[int, Field(ge=1)] = Field(
            MULTIPLE, description="The number of neurons in a block is a multiple of this."
        )
        calibration: Annotated[int, Field(ge=1)] = Field(
            512, description="Training rows on which importance is measured."
        )

        @model_validator(mode="after")
        def _has_an_assistant(self) -> AutoDisc.Config:
            if self.target > self.scales[0]:
                raise ValueError(
                    f"no candidate (`scales` = {self.scales}) is as large as `target` = "
                    f"{self.target:g}, and an assistant is never smaller than its student"
                )
            return self

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.slicer: Slicer | None = None
        self.trial = CandidateScores()
        self._masks: dict[tuple[float, str, int], Tensor] = {}

    @property
    def choice(self) -> CandidateCriterion:
        """The criterion by which candidates are compared."""
        return CandidateCriterion(self.config.trade_off, self.config.target)

    @property
    def searches(self) -> bool:
        """Whether there are candidates other than the whole student."""
        return self.config.scales != [WHOLE]

    def check(self, models: Models) -> None:
        """Reject a student whose states cannot be compared with the teacher's."""
        same_width(
            models,
            self.name,
            "Remove student.hidden_size: the student is made smaller by its heads and neurons "
            "(student.scale)",
        )

    def on_stage_start(self, stage: StageInfo) -> str | None:
        """Measure importance; skip a stage whose student is the assistant."""
        return lifecycle.begin(self, stage)

    def on_evaluate(self, stage: StageInfo, step: Step, metrics: Mapping[str, float]) -> None:
        """Evaluate the candidates."""
        if self.searches:
            lifecycle.judge(self, stage, step)

    def on_stage_end(self, stage: StageInfo, error: BaseException | None) -> None:
        """Write the results of the candidates."""
        if self.searches and error is None:
            lifecycle.write_candidates(self, stage)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read hidden states and logits of the teacher and of each candidate of the step."""
        student, teacher = models.pair
        mine, theirs = zip(*compared(student.layers, teacher.layers), strict=True)
        yield f"teacher.hidden[{','.join(map(str, theirs))}]"
        yield "teacher.logits"
        for scale in self.members(step):
            yield f"student@{at(scale)}.hidden[{','.join(map(str, mine))}]"
            yield f"student@{at(scale)}.logits"

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Return one pass per candidate of the step."""
        return [Pass(at(scale)) for scale in self.members(step)]

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Mask all heads and neurons outside a candidate: it computes what the slice would."""
        for scale in self.members(step):
            for site, layer, by in self.masking(scale, models.student.layers):
                yield Replace(f"student@{at(scale)}.{site}[{layer}]", by)

    def masking(
        self, scale: float, layers: int
    ) -> Iterable[tuple[str, int, Callable[[Tensor], Tensor]]]:
        """Yield the sites of a candidate, their layers and the function that masks them."""
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
        """Return the scales in the sandwich of a step, the same on every rank."""
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
        load_weights(student, directory / lifecycle.ASSISTANT)
        scale = self.trial.selected
        slices = {s for s in (*self.config.scales, self.config.target) if s <= scale}
        return cut_ordered(student, self.slicer, scale, sorted(slices, reverse=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the order of heads and neurons, and the scores of the candidates."""
        trial = asdict(self.trial)
        for name in ("metrics", "performances"):
            trial[name] = list(trial[name].items())
        return {"slicer": self.slicer.as_tree() if self.slicer else None, "trial": trial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
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
                "autodisc cannot be simulated: the heads and neurons of a candidate depend on "
                "their importance, which a run measures before its first step. Plan with `match` "
                "on hidden states and logits instead"
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
    """Return the pairs of hidden states to compare: the embeddings and up to six, evenly spaced.

    Args:
        student: Number of student blocks.
        teacher: Number of teacher blocks.
    """
    count = min(STATES, student, teacher)
    shares = [number / count for number in range(count + 1)]
    return [(round(share * student), round(share * teacher)) for share in shares]


def _half_mean(terms: Sequence[Term]) -> Term:
    return (0.5 / len(terms)) * sum(terms[1:], terms[0])
