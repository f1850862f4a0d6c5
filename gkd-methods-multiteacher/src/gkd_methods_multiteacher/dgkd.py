"""Densely guided knowledge distillation: every larger model teaches every smaller one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field

from gkd_core.api import (
    Batch,
    Models,
    Procedure,
    RunConfig,
    Schedule,
    Share,
    Step,
    TeacherCombiner,
    View,
)
from gkd_methods_multiteacher.assistants import AssistantsConfig, shrink
from gkd_methods_multiteacher.rng import uniform

PAPER = "Son, Na, Choi, Hwang, ICCV 2021, arXiv:2009.08825"


class DenseGuidance(TeacherCombiner):
    """Sum the terms over the teachers, dropping some of them at random in each step.

    L = sum_i b_i L_i with b_i = 1 with probability p, else 0, drawn per teacher and step, equal on
    all ranks. A single teacher is never dropped.
    """

    name = "dgkd"
    paper = PAPER
    weighs_samples = False

    class Config(TeacherCombiner.Config):
        """Options."""

        survival: Share = Field(
            Schedule.parse(0.75),
            description="p: probability that a teacher is used in a step; may be a schedule.",
        )

    config: Config

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return 1 if the teacher is used in this step, else 0."""
        if len(self.models) == 1:
            return 1.0
        drawn = float(uniform(step, number, torch.zeros(1, dtype=torch.int64)))
        return float(drawn < self.config.survival.at(step))


class DGKD(Procedure):
    """Distill into successively smaller models, each taught by all larger ones.

    Every stage uses the run's method; only its teachers and the size of its student differ. Each
    student starts from the (first) teacher of the run.
    """

    name = "dgkd"
    paper = PAPER

    class Config(AssistantsConfig):
        """Options."""

    config: Config

    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return one stage per model, each taught by the teacher and all previous assistants."""
        teachers = [t.model_dump(mode="json", exclude_none=True) for t in config.teachers]
        for name, student in shrink(self.config.assistants, config, models):
            stage: dict[str, Any] = {"name": name, "teachers": list(teachers)}
            if student:
                stage["student"] = student
            yield stage
            teachers.append({"name": name, "model": f"stage:{name}"})
