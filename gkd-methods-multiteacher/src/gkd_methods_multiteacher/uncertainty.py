"""Uncertainty-based selection of teachers, samples and objectives."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    LOGITS,
    Batch,
    Capture,
    MethodError,
    ModelInfo,
    Models,
    Step,
    TeacherCombiner,
    View,
    all_samples,
    soft_cross_entropy,
)
from gkd_methods_multiteacher.samples import per_sample


class Uncertainty(TeacherCombiner):
    """Select teachers, samples and objectives by the student's uncertainty.

    U is between 0 and 1 for each sample. Teacher adoption, `hard`: the micro-batch is sorted by U
    and divided evenly; the most uncertain part learns from the smallest teacher, the next part from
    the next larger one. `soft`: of two teachers, the smaller has weight U and the larger 1 - U;
    for teachers in between, weights are interpolated.

    Data selection: only the most uncertain share of the micro-batch learns from teachers.

    Supervision adjustment: terms of methods that read the teacher's logits are weighted by 1 - U,
    those of methods that read only features by U.
    """

    name = "uncertainty"
    paper = "L. Li, Lin, Ren, P. Li, Zhou, Sun, EMNLP 2021, arXiv:2109.11295"
    batch_coupled = True

    class Config(TeacherCombiner.Config):
        """Options of `uncertainty`."""

        adoption: Literal["hard", "soft", "none"] = Field(
            "hard",
            description="`hard`: one teacher per sample; `soft`: weighted teachers; `none`: equal "
            "weights.",
        )
        share: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Share of a micro-batch (the most uncertain) that uses teachers.",
        )
        supervision: Literal["fixed", "adjusted"] = Field(
            "fixed",
            description="`adjusted` weights predictions by 1 - U and features by U; `fixed` does "
            "not.",
        )
        measure: Literal["entropy", "margin", "confidence"] = Field(
            "entropy",
            description="U: entropy of the prediction, small margin between the two likeliest "
            "classes, or low probability of the likeliest class (least confidence).",
        )

    config: Config

    def check(self) -> None:
        """Reject regression, language models without `entropy`, and options without effect."""
        config, student = self.config, self.models[0].student
        if student.labels == 1:
            raise MethodError(
                "uncertainty is defined for class predictions, which a regression does not have. "
                "Use average(...) or mt-bert(...)"
            )
        if student.is_lm and config.measure != "entropy":
            raise MethodError(
                f"uncertainty.measure = '{config.measure}' needs classes, which a language model "
                "does not have. Set uncertainty.measure=entropy"
            )
        if len(self.models) == 1 and config.share == 1 and config.supervision == "fixed":
            raise MethodError(
                "uncertainty selects among teachers, but there is only 1. Name more with "
                "--teacher, or let it select samples (uncertainty.share) or objectives "
                "(uncertainty.supervision=adjusted)"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the student's logits."""
        return ["student.logits"]

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> Tensor:
        """Return the teacher's weight per sample, `[B]`; summed over all teachers, 1 on average."""
        unsure, count = self._uncertainty(student, batch), len(self.models)
        place = self._place(number)
        rank, samples = _ranks(unsure, batch)
        taught = max(1, int(self.config.share * samples))
        if self.config.adoption == "hard":
            part = range(place * taught // count, (place + 1) * taught // count)
            share = samples / min(count, taught) / max(1, len(part))
            return share * ((part.start <= rank) & (rank < part.stop))
        chosen = (rank < taught) * (samples / taught)
        if self.config.adoption == "none" or count == 1:
            return chosen / count
        return chosen * 2 / count * (unsure + (1 - 2 * unsure) * place / (count - 1))

    def term_scale(
        self, reads: Collection[Capture], student: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return 1 - U for predictions, U for features, `[B]`; 1 if supervision is fixed."""
        if self.config.supervision == "fixed":
            return 1.0
        unsure = self._uncertainty(student, batch)
        return 1 - unsure if LOGITS in reads else unsure

    def _uncertainty(self, student: View, batch: Batch) -> Tensor:
        """Return U of each sample."""
        if self.config.measure == "entropy":
            logits = student.prediction
            # A distribution's cross-entropy with itself is its entropy.
            entropy = soft_cross_entropy(logits, logits, batch.targets)
            return per_sample(entropy) / math.log(logits.shape[-1])
        first, second = student.logits.softmax(-1).topk(2).values.unbind(-1)
        if self.config.measure == "margin":
            return 1 - (first - second)
        return (1 - first) / (1 - 1 / student.logits.shape[-1])

    def _place(self, number: int) -> int:
        """Return the rank of a teacher by size, smallest first."""
        sizes = [_size(teacher) for _, teacher in (one.pair for one in self.models)]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        return order.index(number)


def _ranks(unsure: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Return the uncertainty rank of each sample among all processes, 0 for the most uncertain.

    Args:
        unsure: U of this process's samples, `[B]`.
        batch: The micro-batch.

    Returns:
        int64 `[B]`, and the number of samples of all processes.
    """
    found = all_samples(unsure, batch)
    order = found.values.where(found.counts, -1).argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks[found.own], max(1, found.number)


def _size(model: ModelInfo) -> int:
    """Return the approximate number of weights in a model's blocks, to order teachers by size."""
    attention = model.head_size * (2 * model.heads + 2 * model.kv_heads)
    return model.layers * model.hidden_size * (attention + 2 * model.ffn_size)
