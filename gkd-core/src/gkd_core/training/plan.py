"""What a run will compute, as data: `gkd explain` prints it, and plugins may refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gkd_core.hooks.paths import Capture
from gkd_core.models.info import ModelInfo
from gkd_core.training.checks import first_step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gkd_core.method import Step
    from gkd_core.training.blueprint import Blueprint
    from gkd_core.training.objective import Member


@dataclass(frozen=True)
class CapturePlan:
    """A tensor captured in a pass.

    Attributes:
        path: Which one.
        shape: For a micro-batch of the longest allowed sequences.
        bytes: Its size in fp32.
        readers: Names of the methods that read it.
    """

    path: str
    shape: tuple[int, ...]
    bytes: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class PassPlan:
    """One forward pass of a model in a step.

    Attributes:
        model: `student` or the teacher's name.
        stops_after: Last thing computed; `nothing` if the model does not run.
        captures: What is kept of it.
    """

    model: str
    stops_after: str
    captures: tuple[CapturePlan, ...]


@dataclass(frozen=True)
class OptionPlan:
    """A method option, and where its value came from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class MethodPlan:
    """One method of the sum.

    Attributes:
        name: The method.
        paper: Where it was published.
        weight: Number or schedule.
        options: By name.
    """

    name: str
    paper: str
    weight: str
    options: Mapping[str, OptionPlan]


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: Its name.
        method: The expression.
        method_origin: Where the expression came from.
        task: What is predicted, and from which data.
        batch: Micro-batch size and the longest sequence.
        student: Shape of the student.
        teachers: Shapes of the teachers, also where only the student is made from one.
        methods: The methods of the expression.
        passes: Forward passes of a step, in order (those of the first step).
    """

    name: str
    method: str
    method_origin: str
    task: str
    batch: tuple[int, int]
    student: ModelInfo
    teachers: tuple[ModelInfo, ...]
    methods: tuple[MethodPlan, ...]
    passes: tuple[PassPlan, ...]


@dataclass(frozen=True)
class RunPlan:
    """All stages of a run, in order."""

    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        return asdict(self)


def plan_stage(blueprint: Blueprint) -> StagePlan:
    """Return the plan of a stage."""
    config = blueprint.config
    batch = (
        -(-config.training.batch_size // config.training.accumulation),
        blueprint.max_length,
    )
    return StagePlan(
        name=blueprint.name,
        method=str(blueprint.expression),
        method_origin=blueprint.origin("method"),
        task=f"{blueprint.kind} on {blueprint.data.source}",
        batch=batch,
        student=blueprint.student,
        teachers=tuple(teacher.info for teacher in blueprint.teachers),
        methods=tuple(_method(blueprint, member) for member in blueprint.members),
        passes=tuple(_passes(blueprint, first_step(blueprint.name), batch)),
    )


def _method(blueprint: Blueprint, member: Member) -> MethodPlan:
    method = member.methods[0]
    options = {
        name: OptionPlan(value, blueprint.origin(f"{member.name}.{name}"))
        for name, value in method.config.model_dump(mode="json").items()
    }
    return MethodPlan(member.name, method.paper, str(member.weight), options)


def _passes(blueprint: Blueprint, step: Step, batch: tuple[int, int]) -> Iterable[PassPlan]:
    readers: dict[str, dict[Capture, list[str]]] = {
        info.name: {}
        for info in (*(teacher.info for teacher in blueprint.teachers), blueprint.student)
    }
    for member in blueprint.members:
        for models, reads in zip(member.models, member.reads(step), strict=True):
            _note(readers[models.student.name], reads.student, member.name)
            if models.teacher is not None:
                _note(readers[models.teacher.name], reads.teacher, member.name)
    for info in (*(teacher.info for teacher in blueprint.teachers), blueprint.student):
        found = readers[info.name]
        captures = tuple(
            CapturePlan(
                str(capture),
                capture.shape(info, *batch),
                capture.bytes(info, *batch),
                tuple(dict.fromkeys(found[capture])),
            )
            for capture in sorted(found, key=_order)
        )
        yield PassPlan(
            info.name, _last(info, set(found), is_student=info is blueprint.student), captures
        )


def _note(readers: dict[Capture, list[str]], captures: Iterable[Capture], method: str) -> None:
    for capture in captures:
        readers.setdefault(capture, []).append(method)


def _order(capture: Capture) -> tuple[int, Capture]:
    """Sort by depth: the logits come last."""
    depth = 10**6 if capture.layer is None else capture.layer
    return depth, replace(capture, layer=depth)


def _last(info: ModelInfo, captures: set[Capture], is_student: bool) -> str:
    """Say where a pass ends; a student is only spared an unread head."""
    if not captures:
        return "nothing"
    layers = [info.layers if capture.layer is None else capture.layer for capture in captures]
    if any(capture.site == "logits" for capture in captures):
        return "the logits"
    if is_student or any(capture.normed for capture in captures):
        return "the last block and norm (no head)"
    return f"block {max(layers, default=0)} of {info.layers}"
