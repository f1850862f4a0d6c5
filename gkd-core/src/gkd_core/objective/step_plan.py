"""`StepPlan`: the forward passes of a step, with their captures and changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch

from gkd_core.contract.method import Method
from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import ALWAYS_1, Schedule
from gkd_core.contract.step import Step
from gkd_core.errors import MethodError
from gkd_core.hooks.operations import Operation, Pass
from gkd_core.hooks.paths import MAIN, Capture, Reads, check_teachers, resolve_paths
from gkd_core.models.parts import Part
from gkd_core.objective.conflicts import refuse_passes, refuse_two_writers, refuse_undeclared
from gkd_core.objective.ensemble import TeacherEnsemble, ensembles
from gkd_core.objective.lr_factors import check_factors, join_factors
from gkd_core.plugins.answers import list_of, mapping_of

Side = Literal["student", "teacher"]

REQUESTED = {
    "reads": (str, "a list of paths, such as ['student.hidden[last]']"),
    "passes": (Pass, "a list of `Pass`"),
    "writes": (Operation, "a list of operations, such as `Swap`"),
}
"""The requests of methods in a step: the type of each, and the values returned."""

SAMPLED = 16
"""Steps in which methods are asked what they will read, before a stage begins."""


@dataclass(frozen=True)
class ActiveMethod:
    """One method of an expression.

    Attributes:
        name: The method's name.
        weight: Its factor in the sum.
        methods: One object per teacher, or a single one if the method takes no teacher.
        models: The models as described to each of these objects.
        generator: Generator for its random draws.
        ensemble: Combines the terms of several teachers; None without one.
        outside: Weight of the parentheses around it.
    """

    name: str
    weight: Schedule
    methods: tuple[Method, ...]
    models: tuple[Models, ...]
    generator: torch.Generator
    ensemble: TeacherEnsemble | None = None
    outside: Schedule = ALWAYS_1

    def __post_init__(self) -> None:
        """Tell each object its models."""
        for method, models in zip(self.methods, self.models, strict=True):
            method.models = models

    @property
    def takes_teacher(self) -> bool:
        """Whether the method reads a teacher."""
        return self.methods[0].teachers == "one"

    def factor(self, step: Step) -> float:
        """Return the weight of its terms in the sum: its own times that of the parentheses."""
        return self.outside.at(step) * self.weight.at(step)

    def detached_copy(self) -> ActiveMethod:
        """Return a copy with its own generator, so that previewing does not advance the RNG."""
        generator = torch.Generator().set_state(self.generator.get_state())
        ensemble = self.ensemble.detached_copy() if self.ensemble else None
        return replace(self, generator=generator, ensemble=ensemble)

    def rehearsal_copy(self) -> ActiveMethod:
        """Return a copy on which a step can be begun without advancing the method's state."""
        copied = self.detached_copy()
        ensemble = copied.ensemble.rehearsal_copy() if copied.ensemble else None
        return replace(copied, methods=copy.deepcopy(self.methods), ensemble=ensemble)


@dataclass(frozen=True)
class Write:
    """An operation of a method, with the places it changes.

    Attributes:
        operation: The operation.
        side: Which model it changes.
        run: The pass that it applies to.
        places: The places that it changes.
        seed: Seed of its random draws in this step.
    """

    operation: Operation
    side: Side
    run: str
    places: tuple[Capture, ...]
    seed: int


@dataclass(frozen=True)
class StepRequest:
    """The request of one method object, or of a combiner for one teacher, in a step.

    Attributes:
        member: The method or ensemble it belongs to.
        number: Index of the object in the method, and of its teacher.
        reads: What it reads, by pass.
        passes: Its own passes.
        writes: Its operations.
        lr_factors: Learning-rate factors, by part of the student.
        softens_at: Temperatures of what it compares of its teacher's logits; None if it needs more.
    """

    member: ActiveMethod | TeacherEnsemble
    number: int
    reads: Reads
    passes: tuple[Pass, ...]
    writes: tuple[Write, ...]
    lr_factors: Mapping[Part, float]
    softens_at: Collection[float] | None

    @property
    def models(self) -> Models:
        """The models as this object knows them."""
        return self.member.models[self.number]

    def key(self, run: str) -> str:
        """Return the name of a pass that is unique among all methods."""
        if run == MAIN:
            return MAIN
        several = f"[{self.number + 1}]" if len(self.member.methods) > 1 else ""
        return f"{self.member.name}{several}@{run}"

    def captures(self, side: Side, run: str) -> frozenset[Capture]:
        """Return the paths that the method reads from a model in a pass."""
        reads = self.reads.student if side == "student" else self.reads.teacher
        return reads.get(run, frozenset())


@dataclass(frozen=True)
class PlannedPass:
    """One forward pass of a step, for all methods.

    Attributes:
        name: `main`, or `METHOD@NAME` for a method's own.
        run: The name as its owner knows it.
        requests: The requests it serves: all of them, or only its owner's.
        inputs: The owner's pass, whose inputs may replace the batch's; None for the main pass.
    """

    name: str
    run: str
    requests: tuple[StepRequest, ...]
    inputs: Pass | None = None

    def captures(self, side: Side, number: int | None = None) -> frozenset[Capture]:
        """Return the union of what is read from the student, or from teacher `number`."""
        parts = (request.captures(side, self.run) for request in self.requests_of(number))
        return frozenset[Capture]().union(*parts)

    def teacher_name(self, number: int) -> str:
        """Return the name of teacher `number`; empty if no method is told of it."""
        known = (request.models.teacher for request in self.requests_of(number))
        return next((info.name for info in known if info is not None), "")

    def readers(self, capture: Capture, side: Side, number: int | None) -> tuple[str, ...]:
        """Return the names of the methods that read a tensor."""
        readers = (a for a in self.requests_of(number) if capture in a.captures(side, self.run))
        return tuple(dict.fromkeys(request.member.name for request in readers))

    def writes(self, side: Side, number: int | None = None) -> Iterable[tuple[StepRequest, Write]]:
        """Yield the operations on the student, or on teacher `number`."""
        for request in self.requests_of(number):
            for write in request.writes:
                if (write.side, write.run) == (side, self.run):
                    yield request, write

    def requests_of(self, number: int | None) -> Iterable[StepRequest]:
        """Yield the requests that it serves, or only those that read teacher `number`."""
        return (a for a in self.requests if number is None or a.number == number)


@dataclass(frozen=True)
class StepPlan:
    """The requests of all methods for a step that they have begun, and the passes that serve them.

    Attributes:
        requests: The requests of each method or ensemble, by its name.
        passes: The passes in order, the main pass first.
        lr_factors: Learning-rate factors, by part of the student.
    """

    requests: Mapping[str, Sequence[StepRequest]]
    passes: Sequence[PlannedPass]
    lr_factors: Mapping[Part, float]


def plan_step(
    members: Iterable[ActiveMethod],
    step: Step,
    training: bool = True,
    explain: Callable[[ActiveMethod | TeacherEnsemble], AbstractContextManager[None]] | None = None,
) -> StepPlan:
    """Begin a step of every method and combiner; return its plan, made from their requests.

    Args:
        members: The methods.
        step: The position in training.
        training: False for the operations that apply in an evaluation after the step, which has
            begun by then.
        explain: Returns a context in which one of them is asked, to add details to its errors.

    Raises:
        MethodError: A path or pass does not exist, or two methods change the same place or want
            different learning rates for the same part.
    """
    members = list(members)
    owners = {c.name: c for c in ensembles(members)} | {m.name: m for m in members}
    requests = {}
    for name, owner in owners.items():
        with explain(owner) if explain else nullcontext():
            requests[name] = _request(owner, step, training)
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


def sample_steps(
    members: Iterable[ActiveMethod],
    stage: str,
    explain: Callable[[ActiveMethod | TeacherEnsemble], AbstractContextManager[None]] | None = None,
) -> tuple[StepPlan, ...]:
    """Ask copies of methods for their requests in a few steps of a stage.

    Args:
        members: The methods; their state and generators stay as they are.
        stage: Name of the stage.
        explain: Returns a context in which one of them is asked; it may say more of an error.

    Raises:
        MethodError: As for `plan_step`.
    """
    copies = [member.rehearsal_copy() for member in members]
    steps = (Step(index, SAMPLED, index, stage, torch.Generator()) for index in range(SAMPLED))
    return tuple(plan_step(copies, step, explain=explain) for step in steps)


def _request(
    member: ActiveMethod | TeacherEnsemble, step: Step, training: bool
) -> list[StepRequest]:
    step = replace(step, generator=member.generator)
    known = [models.teacher.name for models in member.models if models.teacher is not None]
    found = []
    for number, (method, models) in enumerate(zip(member.methods, member.models, strict=True)):
        if training and (number == 0 or isinstance(member, ActiveMethod)):
            method.begin_step(step)  # a combiner is one object for all teachers
        passes = tuple(_asked(method, "passes", models, step))
        asked_writes = _asked(method, "writes", models, step)
        operations = [o for o in asked_writes if o.when.holds(step, training)]
        refuse_undeclared(method, operations)
        asked_reads = _asked(method, "reads", models, step)
        paths = [*asked_reads, *(p for o in operations for p in o.reads)]
        check_teachers([*paths, *(o.site for o in operations)], known, member.name)
        reads = resolve_paths(paths, models, member.name)
        found_writes = (_write(o, models, member.name, step.generator) for o in operations)
        writes = tuple(write for write in found_writes if write is not None)
        factors = _factors(method, models, step)
        softens_at = method.softens_at(step) if isinstance(method, Method) else None
        request = StepRequest(member, number, reads, passes, writes, factors, softens_at)
        refuse_passes(request)
        found.append(request)
    return found


def _asked(method: MethodBase, member: str, models: Models, step: Step) -> list[Any]:
    """Return a method's request by `reads`, `passes` or `writes`, after checking its type."""
    kind, wanted = REQUESTED[member]
    return list_of(method, member, getattr(method, member)(models, step), kind, wanted)


def _factors(method: MethodBase, models: Models, step: Step) -> Mapping[Part, float]:
    """Return the learning-rate factors that a method requests, after checking them."""
    wanted = "a mapping of parts to numbers, such as {'embedding': 0}"
    factors = mapping_of(method, "lr_factors", method.lr_factors(models, step), Real, wanted)
    return check_factors(factors, models.student.layers, method.name)


def _write(
    operation: Operation, models: Models, owner: str, generator: torch.Generator
) -> Write | None:
    """Return an operation with its places, or None if it is on another teacher."""
    path = operation.path(owner)
    seed = int(torch.randint(2**62, (), generator=generator))
    if path.side == "student":
        places = path.resolve(models.student, owner)
        return Write(operation, "student", path.run, tuple(sorted(places)), seed)
    if models.teacher is None:
        raise MethodError(
            f"{owner} changes {operation.site}, but the run has no teacher. Set `teacher`"
        )
    if path.teacher not in (None, models.teacher.name):
        return None
    places = path.resolve(models.teacher, owner)
    return Write(operation, "teacher", path.run, tuple(sorted(places)), seed)
