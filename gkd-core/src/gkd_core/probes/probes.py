"""`Probes`: distances between features of student and teachers, measured while a stage trains.

A measurement has forward passes of its own, without gradient and without dropout, before a step
changes the weights. Nothing of it stays in memory, and training is bit for bit the same with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from gkd_core.contract.method import Method
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.step import Step
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.distributed.data_parallel import share, sum_over_ranks
from gkd_core.distributed.ranks import is_first
from gkd_core.distributed.teacher_batches import gather_teacher_batches
from gkd_core.losses.term import Term
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod, StepPlan, plan_step
from gkd_core.optim.engine import autocast
from gkd_core.probes.choice import (
    ProbeChoice,
    ProbedPair,
    name_pairs,
)
from gkd_core.probes.distances import Sides
from gkd_core.probes.probe_file import (
    PROBES,
    TRAINING,
    VALIDATION,
    ProbedValue,
    ProbeFile,
)
from gkd_core.teachers.teacher import SourcedTeacher

if TYPE_CHECKING:
    from gkd_core.config.schema import ProbeConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.distributed.teacher_batches import TeacherBatches
    from gkd_core.hooks.features import View
    from gkd_core.tracking.recorder import Recorder
    from gkd_core.training.stage import Stage

ROWS = 64
"""Validation rows on which the student of a stage is measured when it is trained."""

NAME = "probe"

Compared: TypeAlias = tuple[str, str, str, str]
"""Teacher, feature, feature of the teacher, and distance."""


class ProbeReader(Method):
    """The reads of probes; they add nothing to the loss and are in no expression."""

    name = NAME
    paper = "none: it observes"
    pairs: Sequence[ProbedPair] = ()

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read both sides of every pair."""
        teacher = "" if models.teacher is None else models.teacher.name
        for pair in self.pairs:
            yield from (f"student.{pair.student}", f"teachers[{teacher}].{pair.teacher}")

    def loss(
        self, student: View, teacher: View, batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        """Return no term."""
        return {}


@dataclass(frozen=True)
class Probes:
    """The probes of a stage.

    Attributes:
        config: The settings.
        choices: What is compared, by the name of the teacher.
        plan: The passes in which it is captured.
        file: Where values are stored.
    """

    config: ProbeConfig
    choices: Mapping[str, ProbeChoice]
    plan: StepPlan
    file: ProbeFile

    def describe(self) -> Iterator[str]:
        """Yield what is compared, and what is left out."""
        for teacher, choice in self.choices.items():
            named = name_pairs((str(pair.student), str(pair.teacher)) for pair in choice.pairs)
            yield f"every {self.config.every} steps, of student and {teacher}: {named}"
            yield from (f"left out: {note}" for note in choice.left_out)

    def due(self, step: Step) -> bool:
        """Return whether to measure before a step."""
        return step.index % self.config.every == 0

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare."""
        return any(choice.pairs for choice in self.choices.values())

    def measure(
        self, stage: Stage, batch: Batch, step: Step, recorder: Recorder, rows: str = TRAINING
    ) -> None:
        """Measure on a micro-batch, and record the values; every rank calls it.

        Args:
            stage: The stage.
            batch: This rank's share of the micro-batch, on the CPU.
            step: The step before whose update it is.
            recorder: Where they are shown.
            rows: What the rows are from.
        """
        if not self.compares:
            return
        compared, parts = self.compare(stage, batch, step)
        sums, counts = sum_over_ranks({NAME: parts})[NAME].tolist()
        found = [
            ProbedValue(step.index + 1, step.epoch, rows, *names, total / count)
            for names, total, count in zip(compared, sums, counts, strict=True)
            if count and math.isfinite(total)
        ]
        if is_first():
            self.file.append(found)
        recorder.track(step, self._named(found))

    def measure_validation(self, stage: Stage, step: Step, recorder: Recorder) -> None:
        """Measure on the first validation rows; a source may know the training rows only."""
        sources = [t.source for t in stage.teachers if isinstance(t, SourcedTeacher)]
        if not all(source.any_text for source in sources):
            return
        rows, counted = share(range(min(ROWS, len(stage.validation))))
        batch = stage.collator.collate(stage.validation, rows, EVALUATION_EPOCH)
        self.measure(stage, replace(batch, counted=counted), step, recorder, VALIDATION)

    def _named(self, values: Iterable[ProbedValue]) -> dict[str, float]:
        """Return values by the names of their curves."""

        def name(value: ProbedValue) -> str:
            folder = NAME if value.rows == TRAINING else f"{NAME}-{value.rows}"
            teacher = [value.teacher] if len(self.choices) > 1 else []
            return "/".join([folder, *teacher, value.name])

        return {name(value): value.value for value in values}

    def compare(self, stage: Stage, batch: Batch, step: Step) -> tuple[list[Compared], Tensor]:
        """Return the comparisons, and the sum and the number of items of each distance.

        Args:
            stage: The stage.
            batch: This rank's share of the micro-batch, on the CPU.
            step: The step.
        """
        config, device = stage.config, stage.engine.device
        caches = config.parallel.zero < 3
        with (
            torch.no_grad(),
            _evaluating(stage.student.model),
            autocast(config.training, device, caches),
        ):
            return self._compare(stage, gather_teacher_batches(batch).to(device), step)

    def _compare(
        self, stage: Stage, batches: TeacherBatches, step: Step
    ) -> tuple[list[Compared], Tensor]:
        batch = batches.batches[batches.own]
        captured = run_passes(
            self.plan, stage.student, stage.teachers, batch, step, batches, stage.feature_offload
        )
        compared, parts = [], []
        for request, (teacher, choice) in zip(
            self.plan.requests[NAME], self.choices.items(), strict=True
        ):
            student, known = captured.views(request)
            for pair in choice.pairs:
                sides = Sides(student, known, pair.student, pair.teacher, batch)
                for distance in pair.distances:
                    compared.append((teacher, str(pair.student), str(pair.teacher), distance.name))
                    parts.append(_parts(distance.measure(sides), batch.counted))
        return compared, torch.stack(parts, 1)


def build_probes(stage: Stage) -> Probes | None:
    """Return the probes of a stage; None if it asks for none or reads no teacher."""
    spec, config = stage.spec, stage.config.probe
    if config is None or not spec.probed:
        return None
    plan = plan_probes(spec.probed, spec.taught)
    named = {t.info.name: choice for t, choice in zip(spec.teachers, spec.probed, strict=True)}
    return Probes(config, named, plan, ProbeFile(stage.directory / PROBES))


def plan_probes(choices: Sequence[ProbeChoice], taught: Sequence[Models]) -> StepPlan:
    """Return the passes of a measurement, which are the same in every step.

    Args:
        choices: What is compared with each teacher.
        taught: The shapes of the student and each teacher.
    """
    readers = tuple(ProbeReader() for _ in taught)
    for reader, choice in zip(readers, choices, strict=True):
        reader.pairs = choice.pairs
    member = ActiveMethod(NAME, ALWAYS_1, readers, tuple(taught), torch.Generator())
    return plan_step([member], Step(0, 1, 0, NAME, member.generator))


def _parts(value: Term | Tensor, counted: bool) -> Tensor:
    """Return the sum of a distance over this rank's items, and their number, in fp64."""
    if isinstance(value, Term):
        total, count = value.values.sum(), value.over.count
    else:  # the same on all ranks
        total, count, counted = value, 1, True
    return torch.stack([total.double(), total.new_tensor(count, dtype=torch.float64)]) * counted


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; each module is afterwards in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
