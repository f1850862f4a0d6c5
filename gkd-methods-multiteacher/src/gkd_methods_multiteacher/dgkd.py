"""Densely guided knowledge distillation: every larger model teaches every smaller one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field

from gkd_core.api import Batch, Models, Procedure, RunConfig, Schedule, Step, TeacherCombiner, View
from gkd_methods_multiteacher.assistants import AssistantsConfig, shrink
from gkd_methods_multiteacher.rng import uniform

PAPER = "Son, Na, Choi, Hwang, ICCV 2021, arXiv:2009.08825"


class DenseGuidance(TeacherCombiner):
    """Sum the terms over the teachers, of which some are left out of each step at random.

    L = sum_i b_i L_i with b_i = 1 at probability p, else 0, for each teacher and step anew,
    equal on all ranks. A single teacher is never left out.
    """

    name = "dgkd"
    paper = PAPER

    class Config(TeacherCombiner.Config):
        """Options."""

        survival: Schedule = Field(
            Schedule.parse(0.75),
            description="p: probability that a teacher takes part in a step; may be a schedule.",
        )

    config: Config

    def weight(self, number: int, student: View, teacher: View, batch: Batch, step: Step) -> float:
        """Return 1 for a teacher that takes part in this step, 0 for one that does not."""
        if len(self.models) == 1:
            return 1.0
        drawn = float(uniform(step, number, torch.zeros(1, dtype=torch.int64)))
        return float(drawn < self.config.survival.at(step.index, step.total))


class DGKD(Procedure):
    """Distil into ever smaller models, each taught by all that are larger.

    Every stage is the run's own method; only its teachers and the size of its student differ. Each
    student starts from the (first) teacher of the run.
    """

    name = "dgkd"
    paper = PAPER

    class Config(AssistantsConfig):
        """Options."""

    config: Config

    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return a stage per model, each taught by the teacher and every assistant before it."""
        teachers = [t.model_dump(mode="json", exclude_none=True) for t in config.teachers]
        for name, student in shrink(self.config.assistants, config, models):
            stage: dict[str, Any] = {"name": name, "teachers": list(teachers)}
            if student:
                stage["student"] = student
            yield stage
            teachers.append({"name": name, "model": f"stage:{name}"})
