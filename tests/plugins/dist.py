"""DIST: correlations of the predictions, within each sample and within each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    View,
    all_samples,
    hookimpl,
)


class Dist(Method):
    """Correlate the softened predictions of both models.

    L = beta T^2 mean_i (1 - r(p_i, q_i)) + gamma T^2 mean_c (1 - r(p_c, q_c)), where r is Pearson's
    correlation, p_i the probabilities of all classes in sample i, and p_c those of class c in all
    samples of the micro-batch.
    """

    name = "dist"
    paper = "Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv:2205.10536"
    kinds = ("classification", "multiple-choice")
    batch_coupled = True
    min_samples = 2

    class Config(Method.Config):
        """Options of `dist`."""

        beta: float = Field(1.0, ge=0, description="Weight of the relations between classes.")
        gamma: float = Field(1.0, ge=0, description="Weight of the relations within a class.")
        temperature: Temperature = Field(
            Schedule.parse(1.0), description="T, the divisor of the logits; may be a schedule."
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Correlate rows, and columns over the samples of all ranks."""
        temperature = self.config.temperature.at(step)
        learned, known = (_soften(view.logits, temperature) for view in (student, teacher))
        everywhere = all_samples(learned, batch)
        all_known = all_samples(known, batch).values[everywhere.counts]
        all_learned = everywhere.values[everywhere.counts]
        inter = 1 - _correlation(learned, known)
        intra = 1 - _correlation(all_learned.T, all_known.T).mean()
        scale = temperature**2
        return {
            "inter": self.config.beta * scale * inter,
            "intra": self.config.gamma * scale * intra.expand(len(batch)),
        }


def _soften(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities in fp32 or fp64."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(dtype) / temperature).softmax(-1)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation of each pair of rows; 0 if one is constant."""
    one, other = (values - values.mean(-1, keepdim=True) for values in (one, other))
    return functional.cosine_similarity(one, other, dim=-1)


@hookimpl
def gkd_register_methods() -> list[type[Method]]:
    """Register the method."""
    return [Dist]
