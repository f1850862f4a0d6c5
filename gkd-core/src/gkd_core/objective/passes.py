"""What the models compute in a step: which passes, what is captured and changed in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from gkd_core.contract.batch import Batch
from gkd_core.contract.method import Method
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import ALWAYS_1, Schedule
from gkd_core.contract.step import Step
from gkd_core.distributed.teacher_batches import PassInputs, TeacherBatches
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.hooks.features import Features
from gkd_core.hooks.forward import Change
from gkd_core.hooks.operations import Operation, OperationContext, Pass
from gkd_core.hooks.paths import MAIN, Capture, Reads, check_teachers, resolve_paths
from gkd_core.models.parts import Part
from gkd_core.objective.captured import Captured
from gkd_core.objective.conflicts import refuse_passes, refuse_two_writers, refuse_undeclared
from gkd_core.objective.ensemble import TeacherEnsemble, ensembles
from gkd_core.objective.lr_factors import check_factors, join_factors

Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class ActiveMethod:
    """One method of an expression.

    Attributes:
        name: The method's name.
        weight: Its factor in the sum.
        methods: One object per teacher, or a single one if the method takes none.
        models: What each of these objects is told of the models.
        generator: Source of its random draws.
        ensemble: What makes one term of those for each teacher, if there are several.
        outside: Weight before the parentheses that it stands in.
    """

    name: str
    weight: Schedule
    methods: tuple[Method, ...]
    models: tuple[Models, ...]
    generator: torch.Generator
    ensemble: TeacherEnsemble | None = None
    outside: Schedule = ALWAYS_1

    @property
    def takes_teacher(self) -> bool:
        """Whether the method reads a teacher."""
        return self.methods[0].teachers == "one"

    def factor(self, step: Step) -> float:
        """Return the weight of its terms in the sum, within and before the parentheses."""
        where = step.index, step.total
        return self.outside.at(*where) * self.weight.at(*where)

    def detached_copy(self) -> ActiveMethod:
        """Return the same method with a generator of its own, so that looking changes no draw."""
        generator = torch.Generator().set_state(self.generator.get_state())
        ensemble = self.ensemble.detached_copy() if self.ensemble else None
        return replace(self, generator=generator, ensemble=ensemble)


@dataclass(frozen=True)
class Write:
    """An operation of a method, with the places it stands for.

    Attributes:
        operation: The operation.
        side: Which model it changes.
        run: In which pass.
        places: Where.
        seed: For what it draws at random in this step.
    """

    operation: Operation
    side: Side
    run: str
    places: tuple[Capture, ...]
    seed: int


@dataclass(frozen=True)
class StepRequest:
    """What one method object, or a combiner for one teacher, asks for in a step.

    Attributes:
        member: The method or ensemble it belongs to.
        number: Which of the method's objects it is; also the number of its teacher.
        reads: What it reads, by pass.
        passes: Its own passes.
        writes: Its operations.
        lr_factors: Factors of the learning rate, by part of the student.
    """

    member: ActiveMethod | TeacherEnsemble
    number: int
    reads: Reads
    passes: tuple[Pass, ...]
    writes: tuple[Write, ...]
    lr_factors: Mapping[Part, float]

    @property
    def models(self) -> Models:
        """The models as this object knows them."""
        return self.member.models[self.number]

    def key(self, run: str) -> str:
        """Return the name of a pass among those of all methods."""
        if run == MAIN:
            return MAIN
        several = f"[{self.number + 1}]" if len(self.member.methods) > 1 else ""
        return f"{self.member.name}{several}@{run}"

    def captures(self, side: Side, run: str) -> frozenset[Capture]:
        """Return what it reads of a model in a pass."""
        reads = self.reads.student if side == "student" else self.reads.teacher
        return reads.get(run, frozenset())


@dataclass(frozen=True)
class PlannedPass:
    """One pass of a step, for all methods.

    Attributes:
        name: `main`, or `METHOD@NAME` for a method's own.
        run: The name as its owner knows it.
        requests: Who takes part: all, or the owner.
        inputs: What is read instead of the batch's inputs, if anything.
    """

    name: str
    run: str
    requests: tuple[StepRequest, ...]
    inputs: Pass | None = None

    def captures(self, side: Side, number: int | None = None) -> frozenset[Capture]:
        """Return the union of what is read of the student, or of teacher `number`."""
        parts = (request.captures(side, self.run) for request in self._of(number))
        return frozenset[Capture]().union(*parts)

    def readers(self, capture: Capture, side: Side, number: int | None) -> tuple[str, ...]:
        """Return the names of the methods that read a tensor."""
        readers = (a for a in self._of(number) if capture in a.captures(side, self.run))
        return tuple(dict.fromkeys(request.member.name for request in readers))

    def writes(self, side: Side, number: int | None = None) -> Iterable[tuple[StepRequest, Write]]:
        """Yield the operations on the student, or on teacher `number`."""
        for request in self._of(number):
            for write in request.writes:
                if (write.side, write.run) == (side, self.run):
                    yield request, write

    def _of(self, number: int | None) -> Iterable[StepRequest]:
        return (a for a in self.requests if number is None or a.number == number)


@dataclass(frozen=True)
class StepPlan:
    """What the methods want of a step. They are asked once a step, as they may draw it at random.

    Attributes:
        requests: What each object of a method or ensemble asks for, by its name.
        passes: The passes in order; the main one first.
        lr_factors: Factors of the learning rate, by part of the student.
    """

    requests: Mapping[str, Sequence[StepRequest]]
    passes: Sequence[PlannedPass]
    lr_factors: Mapping[Part, float]


def plan_step(members: Iterable[ActiveMethod], step: Step, training: bool = True) -> StepPlan:
    """Ask every method, and every combiner, what it wants in a step.

    Args:
        members: The methods.
        step: Where training stands.
        training: False for the operations of the evaluation after the step.

    Raises:
        MethodError: A path or pass does not exist, two methods change the same place, or want
            different learning rates for the same part.
    """
    members = list(members)
    owners = {c.name: c for c in ensembles(members)} | {m.name: m for m in members}
    requests = {name: _request(owner, step, training) for name, owner in owners.items()}
    everyone = tuple(one for objects in requests.values() for one in objects)
    own = [
        PlannedPass(one.key(extra.name), extra.name, (one,), extra)
        for one in everyone
        for extra in one.passes
    ]
    passes = [PlannedPass(MAIN, MAIN, everyone), *own]
    for planned in passes:
        refuse_two_writers(planned)
    return StepPlan(requests, passes, join_factors(everyone))


def run_passes(
    plan: StepPlan,
    student: Extractor,
    teachers: Sequence[Extractor],
    batch: Batch,
    step: Step,
    teacher_batches: TeacherBatches | None = None,
    feature_offload: FeatureOffload | None = None,
) -> Captured:
    """Run every pass of a micro-batch: the teachers' first, without gradient, then the student's.

    Args:
        plan: What to capture and change.
        student: The student.
        teachers: The teachers.
        batch: The micro-batch.
        step: Where training stands.
        teacher_batches: The micro-batches that the teachers run on; this one alone unless given.
        feature_offload: Where what was captured of one teacher waits while others run, if anywhere.
    """
    teacher_batches = teacher_batches or TeacherBatches([batch])
    inputs = _inputs(plan, teacher_batches, step)
    captured = Captured({}, [{} for _ in teachers], feature_offload)

    def run(
        model: Extractor,
        planned: PlannedPass,
        side: Side,
        number: int | None,
        turn: int,
        found: Captured,
    ) -> Features:
        wanted = planned.captures(side, number)
        if not wanted:
            return Features()
        rows, own = teacher_batches.batches[turn], inputs[turn]
        changes = [
            change
            for request, write in planned.writes(side, number)
            for change in _bind(request, write, found, rows, step, student, teachers, own)
        ]
        return model.run(wanted, own.get(planned.name, rows.inputs), changes)

    with torch.no_grad():
        for number, teacher in enumerate(teachers):
            taken = teacher_batches.of(teacher.model, student.model)
            for turn in taken:
                found = (
                    captured
                    if turn == teacher_batches.own
                    else Captured({}, [{} for _ in teachers])
                )
                for planned in plan.passes:
                    features = run(teacher, planned, "teacher", number, turn, found)
                    if len(taken) > 1:
                        features.gather()
                    found.teachers[number][planned.name] = features
            captured.offload(number)
    for planned in plan.passes:
        features = run(student, planned, "student", None, teacher_batches.own, captured)
        captured.student[planned.name] = features
    return captured


def evaluation_changes(
    members: Iterable[ActiveMethod],
    student: Extractor,
    teachers: Sequence[Extractor],
    batch: Batch,
    step: Step,
) -> list[Change]:
    """Return what changes the student on a batch in an evaluation.

    Only operations of the main pass that need no other pass can act there.
    """
    plan = plan_step([member.detached_copy() for member in members], step, training=False)
    captured = Captured({}, [{} for _ in teachers])
    return [
        change
        for request, write in plan.passes[0].writes("student")
        for change in _bind(request, write, captured, batch, step, student, teachers, {})
    ]


def _request(
    member: ActiveMethod | TeacherEnsemble, step: Step, training: bool
) -> list[StepRequest]:
    step = replace(step, generator=member.generator)
    known = [models.teacher.name for models in member.models if models.teacher is not None]
    found = []
    for number, (method, models) in enumerate(zip(member.methods, member.models, strict=True)):
        passes = tuple(method.passes(models, step))
        operations = [o for o in method.writes(models, step) if o.when.holds(step, training)]
        refuse_undeclared(method, operations)
        paths = [*method.reads(models, step), *(p for o in operations for p in o.reads)]
        check_teachers([*paths, *(o.site for o in operations)], known, member.name)
        reads = resolve_paths(paths, models, member.name)
        found_writes = (_write(o, models, member.name, step.generator) for o in operations)
        writes = [write for write in found_writes if write is not None]
        factors = method.lr_factors(models, step)
        factors = check_factors(factors, models.student.layers, member.name)
        request = StepRequest(member, number, reads, passes, tuple(writes), factors)
        refuse_passes(request)
        found.append(request)
    return found


def _write(
    operation: Operation, models: Models, owner: str, generator: torch.Generator
) -> Write | None:
    """Return an operation with its places, or None if it is for another teacher."""
    path = operation.path(owner)
    seed = int(torch.randint(2**62, (), generator=generator))
    if path.side == "student":
        places = path.resolve(models.student, owner)
        return Write(operation, "student", path.run, tuple(sorted(places)), seed)
    if models.teacher is None:
        raise MethodError(f"{owner} changes {operation.site}, but the run has no teacher")
    if path.teacher not in (None, models.teacher.name):
        return None
    places = path.resolve(models.teacher, owner)
    return Write(operation, "teacher", path.run, tuple(sorted(places)), seed)


def _inputs(plan: StepPlan, teacher_batches: TeacherBatches, step: Step) -> Sequence[PassInputs]:
    """Return, for each turn, what passes read instead of the batch's inputs, by their name."""
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
    teachers: Sequence[Extractor],
    inputs: PassInputs,
) -> Iterable[Change]:
    learned, known = captured.views(request)
    sites = {"student": student.sites}
    if request.number < len(teachers):
        sites["teacher"] = teachers[request.number].sites
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
