"""A skewed KL divergence, written as a function of log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    divergence,
    hookimpl,
    soft_labels,
)


class Skewed(Method):
    """KL(p || a p + (1 - a) q) of the softened predictions; a may follow a schedule."""

    name = "skewed"
    paper = "Ko, Kim, Chen, Yun, ICML 2024, arXiv:2402.03898"
    same_tokenizer = True

    class Config(Method.Config):
        """Options of `skewed`."""

        alpha: Schedule = Field(Schedule.parse(0.1), description="Share of p; may be a schedule.")
        temperature: Temperature = Field(Schedule.parse(1.0), description="Divisor of logits.")

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions."""
        alpha, temperature = self.config.alpha.at(step), self.config.temperature.at(step)

        @divergence
        def skewed_kl(log_q: Tensor, log_p: Tensor, sum: Callable[[Tensor], Tensor]) -> Tensor:
            mixture = torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
            return sum(log_p.exp() * (log_p - mixture))

        predictions = student.prediction, teacher.prediction
        term = soft_labels(*predictions, batch.targets, temperature, divergence=skewed_kl)
        return {"skewed": term}


@hookimpl
def gkd_register_methods() -> list[type[Method]]:
    """Register the method."""
    return [Skewed]
