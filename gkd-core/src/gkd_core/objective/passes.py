"""The forward passes of a step: the teachers' first, without gradient, then the student's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from gkd_core.contract.batch import Batch
from gkd_core.contract.step import Step
from gkd_core.distributed.teacher_batches import PassInputs, TeacherBatches
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.hooks.features import Features
from gkd_core.hooks.forward import Change
from gkd_core.hooks.operations import OperationContext
from gkd_core.hooks.paths import MAIN
from gkd_core.objective.captured import Captured
from gkd_core.objective.step_plan import (
    ActiveMethod,
    PlannedPass,
    StepPlan,
    StepRequest,
    Write,
    plan_step,
)
from gkd_core.teachers.kept import KeptAnswers
from gkd_core.teachers.teacher import SourcedTeacher, Teacher, batches_for


def run_passes(
    plan: StepPlan,
    student: Extractor,
    teachers: Sequence[Teacher],
    batch: Batch,
    step: Step,
    teacher_batches: TeacherBatches | None = None,
    feature_offload: FeatureOffload | None = None,
    teachers_only: bool = False,
    kept: Mapping[int, KeptAnswers] = MappingProxyType({}),
) -> Captured:
    """Run every pass of a micro-batch: the teachers' first, without gradient, then the student's.

    Args:
        plan: The features to capture and the changes to make.
        student: The student.
        teachers: The teachers.
        batch: The micro-batch.
        step: The position in training.
        teacher_batches: The micro-batches that the teachers run on; only `batch` if None.
        feature_offload: Host memory for the features of teachers that have run; None keeps them on
            the device.
        teachers_only: Leave the student's passes out.
        kept: Tensors of teachers for the training rows, by number; such a teacher does not run if
            nothing else of it is asked for.
    """
    batches = teacher_batches or TeacherBatches([batch])
    inputs = _inputs(plan, batches, step)
    micro_batch = _MicroBatch(plan, student, teachers, batches, inputs, step, kept)
    captured = Captured({}, [{} for _ in teachers], feature_offload)
    with torch.no_grad():
        for number in range(len(teachers)):
            micro_batch.teach(number, captured)
            captured.offload(number)
    if not teachers_only:
        micro_batch.learn(captured)
    return captured


@dataclass(frozen=True)
class _MicroBatch:
    """The passes of one micro-batch; see `run_passes`.

    Attributes:
        inputs: The inputs that passes substitute, by pass name, for each teacher batch.
    """

    plan: StepPlan
    student: Extractor
    teachers: Sequence[Teacher]
    batches: TeacherBatches
    inputs: Sequence[PassInputs]
    step: Step
    kept: Mapping[int, KeptAnswers]

    def teach(self, number: int, captured: Captured) -> None:
        """Run the passes of a teacher, on the batches of other ranks too where these need it."""
        taken = batches_for(self.teachers[number], self.batches, self.student)
        for turn in taken:
            own = turn == self.batches.own
            found = captured if own else Captured({}, [{} for _ in self.teachers])
            for planned in self.plan.passes:
                features = self._answer(planned, number, turn, found)
                if len(taken) > 1:  # only the rank that trains on the batch reads them
                    features.gather()
                found.teachers[number][planned.name] = features

    def learn(self, captured: Captured) -> None:
        """Run the passes of the student."""
        batch, inputs = self.batches.batches[self.batches.own], self.inputs[self.batches.own]
        for planned in self.plan.passes:
            features = Features()
            if wanted := planned.captures("student", None):
                changes = self._changes(planned.writes("student", None), batch, inputs, captured)
                features = self.student.run(wanted, inputs.get(planned.name, batch.inputs), changes)
            captured.student[planned.name] = features

    def _answer(self, planned: PlannedPass, number: int, turn: int, found: Captured) -> Features:
        """Return what a pass wants of a teacher, which does not run if its answers are at hand."""
        teacher, batch = self.teachers[number], self.batches.batches[turn]
        wanted = planned.captures("teacher", number)
        if not wanted:
            return Features()
        if isinstance(teacher, SourcedTeacher):
            return teacher.answer(wanted, batch.view(teacher.name), self.step)
        rows, inputs = batch.view(planned.teacher_name(number)), self.inputs[turn]
        changes = self._changes(planned.writes("teacher", number), rows, inputs, found)
        kept = self.kept.get(number)
        if kept is not None and kept.have(wanted) and planned.name == MAIN and not changes:
            return kept.of(rows, wanted)
        return teacher.run(wanted, inputs.get(planned.name, rows.inputs), changes)

    def _changes(
        self,
        writes: Iterable[tuple[StepRequest, Write]],
        batch: Batch,
        inputs: PassInputs,
        found: Captured,
    ) -> list[Change]:
        return [
            change
            for request, write in writes
            for change in _bind(
                request, write, found, batch, self.step, self.student, self.teachers, inputs
            )
        ]


def evaluation_changes(
    members: Iterable[ActiveMethod],
    student: Extractor,
    teachers: Sequence[Teacher],
    batch: Batch,
    step: Step,
) -> list[Change]:
    """Return the changes to the student's forward pass in an evaluation.

    Only operations of the main pass that need no other pass apply there.
    """
    plan = plan_step([member.detached_copy() for member in members], step, training=False)
    captured = Captured({}, [{} for _ in teachers])
    return [
        change
        for request, write in plan.passes[0].writes("student")
        for change in _bind(request, write, captured, batch, step, student, teachers, {})
    ]


def _inputs(plan: StepPlan, teacher_batches: TeacherBatches, step: Step) -> Sequence[PassInputs]:
    """Return the inputs that passes substitute, by pass name, for each teacher batch."""
    makers = {
        planned.name: (planned.inputs.inputs, planned.requests[0].member.generator)
        for planned in plan.passes
        if planned.inputs is not None and planned.inputs.inputs is not None
    }

    def make(batch: Batch) -> PassInputs:
        return {n: f(batch, replace(step, generator=drawn)) for n, (f, drawn) in makers.items()}

    return teacher_batches.each(make) if makers else [{} for _ in teacher_batches.batches]


def _bind(
    request: StepRequest,
    write: Write,
    captured: Captured,
    batch: Batch,
    step: Step,
    student: Extractor,
    teachers: Sequence[Teacher],
    inputs: PassInputs,
) -> Iterable[Change]:
    learned, known = captured.views(request)
    sites = {"student": student.sites}
    teacher = teachers[request.number] if request.number < len(teachers) else None
    if isinstance(teacher, Extractor):
        sites["teacher"] = teacher.sites
    context = OperationContext(
        student=learned,
        teacher=known,
        batch=batch,
        step=replace(step, generator=request.member.generator),
        seed=write.seed,
        sites=sites,
        inputs={
            one.name: inputs.get(request.key(one.name), batch.inputs) for one in request.passes
        },
    )
    apply = write.operation.bind(context)
    return [Change(place, apply) for place in write.places]
