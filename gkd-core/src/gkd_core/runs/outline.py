"""The outline of a run: what it will compute. `gkd explain` prints it, and plugins check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gkd_core.contract.model_info import ModelInfo
from gkd_core.hooks.paths import MAIN, Capture
from gkd_core.models.meta import meta_model
from gkd_core.models.parts import part_name
from gkd_core.models.sites import own_sites
from gkd_core.probes.probes import ROWS, plan_probes
from gkd_core.students.lora import adapt, target_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gkd_core.contract.task import TaskData
    from gkd_core.objective.ensemble import TeacherEnsemble
    from gkd_core.objective.step_plan import ActiveMethod, PlannedPass, Side, StepPlan
    from gkd_core.teachers.source import AnswerSource
    from gkd_core.training.stage_spec import StageSpec


@dataclass(frozen=True)
class CaptureOutline:
    """A tensor captured in a pass.

    Attributes:
        path: Site and layer, such as `hidden[2]`.
        shape: Shape in a micro-batch of the longest allowed sequences.
        bytes: Its size in fp32.
        readers: Names of the methods that read it.
    """

    path: str
    shape: tuple[int, ...]
    bytes: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class OperationOutline:
    """An operation that a method applies in a pass.

    Attributes:
        text: Effect, site and condition.
        method: Name of the method that requests it.
    """

    text: str
    method: str


@dataclass(frozen=True)
class PassOutline:
    """One forward pass of a model in a step.

    Attributes:
        model: `student` or the teacher's name.
        name: `main`, which all methods share, or `METHOD@NAME`.
        stops_after: The last part computed; `nothing` if the model does not run.
        captures: The captured tensors.
        operations: The operations applied, in order.
        source: Where the tensors come from; empty if the model runs.
    """

    model: str
    name: str
    stops_after: str
    captures: tuple[CaptureOutline, ...]
    operations: tuple[OperationOutline, ...]
    source: str = ""


@dataclass(frozen=True)
class LrFactorOutline:
    """A part of the student with its own learning rate.

    Attributes:
        part: `embedding`, `block 1` or `head`.
        factor: Multiplier of the learning rate; 0 if the part is frozen.
        methods: Names of the methods that set it.
    """

    part: str
    factor: float
    methods: tuple[str, ...]


@dataclass(frozen=True)
class OptionOutline:
    """The value of a method option and its origin.

    Attributes:
        value: The value, in JSON-serializable form.
        origin: Where it was set: a flag, a file, a recipe or the default.
    """

    value: Any
    origin: str


@dataclass(frozen=True)
class MethodOutline:
    """One method of the method expression.

    Attributes:
        name: Name of the method.
        paper: The paper it implements.
        weight: Number or schedule, preceded by the weight of its parentheses if they have one.
        options: Options by name.
    """

    name: str
    paper: str
    weight: str
    options: Mapping[str, OptionOutline]


@dataclass(frozen=True)
class CombinerOutline:
    """A combiner of several teachers.

    Attributes:
        name: Name of the combiner.
        paper: The paper it implements.
        methods: Names of the methods whose terms it combines.
        options: Options by name.
    """

    name: str
    paper: str
    methods: tuple[str, ...]
    options: Mapping[str, OptionOutline]


@dataclass(frozen=True)
class RolloutOutline:
    """Text that models write during training.

    Attributes:
        engine: Name of the engine.
        student: Share of the rows that the student writes: a number or a schedule.
        teacher: Share of the rows that the first teacher writes.
        options: All settings of the table by name.
    """

    engine: str
    student: str
    teacher: str
    options: Mapping[str, OptionOutline]


@dataclass(frozen=True)
class LoraOutline:
    """Low-rank adapters of the student.

    Attributes:
        rank: Rank of each.
        alpha: What they are multiplied by, divided by the rank.
        layers: Number of layers that have one.
        targets: The last parts of the names of these layers.
        trained: Number of trained weights.
        weights: Number of weights of the student without adapters.
    """

    rank: int
    alpha: float
    layers: int
    targets: tuple[str, ...]
    trained: int
    weights: int


@dataclass(frozen=True)
class ProbeOutline:
    """The comparisons of probes, and the computation of a measurement.

    Attributes:
        every: Steps from one measurement to the next.
        rows: Validation rows of the measurement at the end of the stage.
        pairs: Features of the student, each with the teacher's, by the name of the teacher.
        left_out: What cannot be compared although `all` was asked for, by the name of the teacher.
        passes: The forward passes of a measurement; they are not those of the step.
    """

    every: int
    rows: int
    pairs: Mapping[str, tuple[tuple[str, str], ...]]
    left_out: Mapping[str, tuple[str, ...]]
    passes: tuple[PassOutline, ...]


@dataclass(frozen=True)
class StageOutline:
    """The outline of one stage, known before any weight is loaded.

    Attributes:
        name: Name of the stage.
        method: The method expression.
        method_origin: Where the expression was set.
        task: What is predicted and from which data, as text.
        rows: Number of rows by the name of their split.
        metric: The metric that selects the best student.
        classes: Names of the classes in the order of their ids; empty if there are none.
        batch: Rows of a micro-batch, and tokens of the longest sequence.
        student: Shape of the student.
        scale: Share of heads and neurons that `student.scale` keeps; None for all.
        start: What the student is initialized from, as text.
        goes_on_with: Name of the stage whose student it continues with; empty if it creates a new
            student.
        taught_by: Names of the teachers that methods read; for one trained in an earlier stage, the
            name of that stage.
        teachers: Shapes of the teachers, including one that only initializes the student.
        methods: The methods of the expression.
        combiners: The combiners of several teachers.
        passes: Forward passes of the first step, in order.
        lr_factors: Parts of the student with their own learning rate in the first step.
        rollout: The text that models write; None if all text is the data's.
        writing: Settings of the answers that a teacher writes before the first step; None without.
        other_tokenizers: Names of the teachers whose tokenizer is not the student's.
        notes: What was assumed of the rows and models, in sentences.
        probes: What probes compare; None without probes.
        lora: The student's adapters; None if it is trained whole.
    """

    name: str
    method: str
    method_origin: str
    task: str
    rows: Mapping[str, int]
    metric: str
    classes: tuple[str, ...]
    batch: tuple[int, int]
    student: ModelInfo
    scale: float | None
    start: str
    goes_on_with: str
    taught_by: tuple[str, ...]
    teachers: tuple[ModelInfo, ...]
    methods: tuple[MethodOutline, ...]
    combiners: tuple[CombinerOutline, ...]
    passes: tuple[PassOutline, ...]
    lr_factors: tuple[LrFactorOutline, ...]
    rollout: RolloutOutline | None = None
    other_tokenizers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    probes: ProbeOutline | None = None
    lora: LoraOutline | None = None
    writing: Mapping[str, OptionOutline] | None = None


@dataclass(frozen=True)
class RunOutline:
    """The outline of a run, which `gkd_check_outline` receives and `gkd explain` prints.

    Attributes:
        stages: The stages, in order.
    """

    stages: tuple[StageOutline, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the outline in JSON-serializable form."""
        return asdict(self)


def outline_run(specs: Iterable[StageSpec]) -> RunOutline:
    """Return the outline of a run with these stages."""
    return RunOutline(tuple(outline_stage(spec) for spec in specs))


def outline_stage(spec: StageSpec) -> StageOutline:
    """Return the outline of a stage."""
    config = spec.config
    step = spec.first_step
    batch = (
        -(-config.training.batch_size // config.training.accumulation),
        spec.max_length,
    )
    return StageOutline(
        name=spec.name,
        method=str(spec.expression),
        method_origin=spec.origin("method"),
        task=spec.about,
        rows=_rows(spec.data),
        metric=spec.metric.name,
        classes=spec.data.classes if spec.kind.has_classes else (),
        batch=batch,
        student=spec.student,
        scale=spec.scale,
        start=spec.start,
        goes_on_with=spec.follows.name if spec.follows else "",
        taught_by=spec.taught_by,
        teachers=tuple(teacher.info for teacher in spec.teachers),
        methods=tuple(_method(spec, member) for member in spec.members),
        combiners=tuple(_combiner(spec, one) for one in spec.ensembles),
        passes=tuple(_passes(spec, step, batch)),
        lr_factors=tuple(_lr_factors(step)),
        rollout=_rollout(spec),
        other_tokenizers=tuple(
            t.info.name for _, teachers in spec.other_tokenizers for t in teachers
        ),
        notes=spec.notes,
        probes=_probes(spec, batch),
        lora=_lora(spec),
        writing=_writing(spec),
    )


def _lora(spec: StageSpec) -> LoraOutline | None:
    lora = spec.config.student.lora
    if lora is None:
        return None
    model = meta_model(spec.kind, spec.student_config, spec.trusts_student)
    sites = own_sites(model)
    names = target_layers(sites, lora)
    trained = adapt(model, sites, lora, spec.kind.is_lm)
    return LoraOutline(
        rank=lora.rank,
        alpha=lora.scale,
        layers=len(names),
        targets=tuple(dict.fromkeys(name.rpartition(".")[2] for name in names)),
        trained=trained.weights,
        weights=trained.total,
    )


def _writing(spec: StageSpec) -> dict[str, OptionOutline] | None:
    config = spec.config.writing
    if config is None:
        return None
    return {
        name: OptionOutline(value, spec.origin(f"writing.{name}"))
        for name, value in config.model_dump(mode="json", exclude_none=True).items()
    }


def _probes(spec: StageSpec, batch: tuple[int, int]) -> ProbeOutline | None:
    config = spec.config.probe
    if config is None or not spec.probed:
        return None
    named = {t.info.name: choice for t, choice in zip(spec.teachers, spec.probed, strict=True)}
    return ProbeOutline(
        every=config.every,
        rows=min(ROWS, len(spec.data.validation)),
        pairs={
            name: tuple((str(pair.student), str(pair.teacher)) for pair in choice.pairs)
            for name, choice in named.items()
        },
        left_out={name: tuple(choice.left_out) for name, choice in named.items()},
        passes=tuple(_passes(spec, plan_probes(spec.probed, spec.taught), batch)),
    )


def _rollout(spec: StageSpec) -> RolloutOutline | None:
    config = spec.config.rollout
    if config is None:
        return None
    options = {
        name: OptionOutline(value, spec.origin(f"rollout.{name}"))
        for name, value in config.model_dump(mode="json").items()
    }
    return RolloutOutline(config.engine, str(config.student), str(config.teacher), options)


def _method(spec: StageSpec, member: ActiveMethod) -> MethodOutline:
    factors = [str(weight) for weight in (member.outside, member.weight)]
    weight = " * ".join(factor for factor in factors if factor != "1") or "1"
    return MethodOutline(member.name, member.methods[0].paper, weight, _options(spec, member))


def _combiner(spec: StageSpec, ensemble: TeacherEnsemble) -> CombinerOutline:
    inside = tuple(m.name for m in spec.members if m.ensemble is ensemble)
    options = _options(spec, ensemble)
    return CombinerOutline(ensemble.name, ensemble.combiner.paper, inside, options)


def _options(spec: StageSpec, owner: ActiveMethod | TeacherEnsemble) -> dict[str, OptionOutline]:
    values = owner.methods[0].config.model_dump(mode="json")
    return {
        name: OptionOutline(value, spec.origin(f"{owner.name}.{name}"))
        for name, value in values.items()
    }


def _rows(data: TaskData) -> dict[str, int]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: len(split) for name, split in splits.items() if split is not None}


def _lr_factors(step: StepPlan) -> Iterable[LrFactorOutline]:
    everyone = [request for objects in step.requests.values() for request in objects]
    for part, factor in step.lr_factors.items():
        names = (request.member.name for request in everyone if part in request.lr_factors)
        yield LrFactorOutline(part_name(part), factor, tuple(dict.fromkeys(names)))


def _passes(spec: StageSpec, step: StepPlan, batch: tuple[int, int]) -> Iterable[PassOutline]:
    planned = step.passes
    for number, teacher in enumerate(spec.teachers):
        for one in planned:
            for outline in _pass(one, teacher.info, "teacher", number, batch):
                yield outline if teacher.source is None else _sourced(outline, teacher.source)
    for one in planned:
        yield from _pass(one, spec.student, "student", None, batch)


def _pass(
    planned: PlannedPass, info: ModelInfo, side: Side, number: int | None, batch: tuple[int, int]
) -> Iterable[PassOutline]:
    """Yield the pass of one model; a method's own pass only if the model takes part in it."""
    found = planned.captures(side, number)
    if not found and planned.name != MAIN:
        return
    captures = tuple(
        CaptureOutline(
            str(capture),
            capture.shape(info, *batch),
            capture.bytes(info, *batch),
            planned.readers(capture, side, number),
        )
        for capture in sorted(found, key=_order)
    )
    operations = tuple(
        OperationOutline(str(write.operation), request.member.name)
        for request, write in planned.writes(side, number)
    )
    last = _last(info, found, is_student=side == "student")
    yield PassOutline(info.name, planned.name, last, captures, operations)


def _sourced(outline: PassOutline, source: AnswerSource) -> PassOutline:
    """Return the outline of a pass that a teacher does not make itself."""
    return replace(outline, stops_after="nothing", source=source.name)


def _order(capture: Capture) -> tuple[int, Capture]:
    """Return the sort key of a capture: by depth, with the logits last."""
    depth = 10**6 if capture.layer is None else capture.layer
    return depth, replace(capture, layer=depth)


def _last(info: ModelInfo, captures: frozenset[Capture], is_student: bool) -> str:
    """Return the last part that a pass computes; a student skips nothing but an unread head."""
    if not captures:
        return "nothing"
    layers = [info.layers if capture.layer is None else capture.layer for capture in captures]
    for site in ("logits", "pooled"):
        if any(capture.site == site for capture in captures):
            return "the logits" if site == "logits" else "the pooled vector"
    if is_student or any(capture.normed for capture in captures):
        return "the last block and norm (no head)"
    return f"block {max(layers, default=0)} of {info.layers}"
