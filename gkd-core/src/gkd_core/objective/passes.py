"""The forward passes of a step: the teachers' first, without gradient, then the student's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    Side,
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
    teacher_batches = teacher_batches or TeacherBatches([batch])
    inputs = _inputs(plan, teacher_batches, step)
    captured = Captured({}, [{} for _ in teachers], feature_offload)

    def run(
        model: Teacher,
        planned: PlannedPass,
        side: Side,
        number: int | None,
        turn: int,
        found: Captured,
    ) -> Features:
        wanted = planned.captures(side, number)
        if not wanted:
            return Features()
        if isinstance(model, SourcedTeacher):
            return model.answer(wanted, teacher_batches.batches[turn].view(model.name), step)
        name = "" if number is None else planned.teacher_name(number)
        rows, own = teacher_batches.batches[turn].view(name), inputs[turn]
        changes = [
            change
            for request, write in planned.writes(side, number)
            for change in _bind(request, write, found, rows, step, student, teachers, own)
        ]
        answers = None if number is None else kept.get(number)
        if answers is not None and answers.have(wanted) and planned.name == MAIN and not changes:
            return answers.of(rows, wanted)
        return model.run(wanted, own.get(planned.name, rows.inputs), changes)

    with torch.no_grad():
        for number, teacher in enumerate(teachers):
            taken = batches_for(teacher, teacher_batches, student)
            for turn in taken:
                found = (
                    captured
                    if turn == teacher_batches.own
                    else Captured({}, [{} for _ in teachers])
                )
                for planned in plan.passes:
                    features = run(teacher, planned, "teacher", number, turn, found)
                    if len(taken) > 1:  # only the rank that trains on the batch reads them
                        features.gather()
                    found.teachers[number][planned.name] = features
            captured.offload(number)
    for planned in () if teachers_only else plan.passes:
        features = run(student, planned, "student", None, teacher_batches.own, captured)
        captured.student[planned.name] = features
    return captured


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
