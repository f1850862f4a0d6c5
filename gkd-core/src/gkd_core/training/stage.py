"""`Stage`: a `StageSpec` with its weights loaded, ready to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.config.schema import LoraConfig, RunConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.optimizer import OptimizerFactory
from gkd_core.contract.step import Step
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.encode import TEXTS, Encoded
from gkd_core.data.other_prompts import OtherPrompts, other_prompts
from gkd_core.data.pack import pack
from gkd_core.data.readings import Reading, encode_again
from gkd_core.data.sampler import Sampler
from gkd_core.distributed.data_parallel import max_over_ranks
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.groups import Groups, arrange, data_rank
from gkd_core.distributed.ranks import set_patience
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.hooks.forward import checkpoint_contexts
from gkd_core.hooks.padding import follow_mask
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.lease import Lease
from gkd_core.models.generation import adopt_generation_config, end_with
from gkd_core.models.load import WeightReader, load_model, load_teacher
from gkd_core.models.meta import meta_model
from gkd_core.models.parts import find_parts
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.tokenizer import set_padding
from gkd_core.named_path import named_path
from gkd_core.objective.objective import Objective, name_seed
from gkd_core.optim.engine import Engine, EngineMaker, build_engine
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.parallel.placement import place_teacher
from gkd_core.plugins import Registry
from gkd_core.probes.probes import Probes, build_probes
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.students.build import Student, build_student, describe, fresh_student
from gkd_core.students.lora import add_lora, copy_sharing
from gkd_core.students.scale import scale_student
from gkd_core.teachers.kept import KeptAnswers
from gkd_core.teachers.teacher import SourcedTeacher, Teacher
from gkd_core.training.agreement import answered
from gkd_core.training.augmentation import augmented
from gkd_core.training.calibration import calibration_batches
from gkd_core.training.checkpoint import BEST
from gkd_core.training.manifest import Manifest
from gkd_core.training.rollouts import build_rollouts
from gkd_core.training.sample_answers import SampleAnswers
from gkd_core.training.stage_spec import StageSpec, TeacherSpec
from gkd_core.training.step_start import StepStart
from gkd_core.vocabulary.weights import RenumberedWeights, renumber, renumber_settings


@dataclass
class Stage:
    """A stage of a run, ready to train.

    Attributes:
        name: Its name.
        spec: The spec it was built from.
        directory: The directory of its checkpoints.
        origin: The student as built, with a summary of where it came from.
        student: The student and its hooks.
        teachers: The teachers, in the order of the configuration.
        objective: The objective that is minimized.
        engine: The engine that runs forward, backward and optimizer steps.
        optimizer: Makes the optimizer.
        feature_offload: Host memory for the features of several teachers; None if not used.
        train: Training rows as token ids.
        validation: Validation rows as token ids.
        judged_rows: Validation rows; without labels of their own, they have a teacher's answers.
        collator: Makes batches of rows.
        sampler: Determines the order of the training rows.
        total_steps: Optimizer steps of the stage.
        readings: Training rows in the tokens of teachers with other tokenizers.
        rollouts: Writes text in place of rows' own; None if nothing does.
        begun: What the step that is being computed began with; None once it changes the weights.
        manifest: What determines the student; it is written with every checkpoint.
        probes: Measures distances to the teachers; None if nobody asked for them.
        lease: The lease of the run directory; the first rank has it.
        kept: Tensors of teachers for all training rows, by the number of the teacher.
        other_prompts: What teachers are asked in the place of the rows' prompts.
        samples: Lets models write answers at evaluations; None if nobody asked for them.
    """

    name: str
    spec: StageSpec
    directory: Path
    origin: Student
    student: Extractor
    teachers: Sequence[Teacher]
    objective: Objective
    engine: Engine
    optimizer: OptimizerFactory
    feature_offload: FeatureOffload | None
    train: Encoded
    validation: Encoded
    judged_rows: Split
    collator: Collator
    sampler: Sampler
    total_steps: int
    readings: Sequence[Reading] = ()
    rollouts: Rollouts | None = None
    begun: StepStart | None = None
    manifest: Manifest = field(default_factory=Manifest)
    probes: Probes | None = None
    lease: Lease | None = None
    kept: Mapping[int, KeptAnswers] = field(default_factory=dict)
    other_prompts: Sequence[OtherPrompts] = ()
    samples: SampleAnswers | None = None

    def check_lease(self) -> None:
        """Make sure that the run directory may still be written.

        Raises:
            LeaseLost: Another process has taken it.
        """
        if self.lease is not None:
            self.lease.check()

    @property
    def config(self) -> RunConfig:
        """The configuration of the stage."""
        return self.spec.config

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        return self.spec.kind

    @property
    def live_teachers(self) -> Sequence[Extractor]:
        """The teachers whose models run."""
        return [teacher for teacher in self.teachers if isinstance(teacher, Extractor)]

    def live(self, number: int) -> Extractor:
        """Return a teacher whose model runs, by its number."""
        teacher = self.teachers[number]
        assert isinstance(teacher, Extractor), "its answers come from a source"
        return teacher

    @property
    def kept_teachers(self) -> list[str]:
        """The names of the teachers whose answers are kept."""
        return [self.spec.teachers[number].info.name for number in self.kept]

    @property
    def metric(self) -> Metric:
        """The metric by which the best student is chosen."""
        return self.spec.metric

    @property
    def best(self) -> Path:
        """The file with the weights of the best student so far."""
        return self.directory / BEST

    @property
    def evaluate_every(self) -> int:
        """The number of steps between evaluations."""
        return self.config.training.evaluate_every or self.sampler.steps_per_epoch

    @property
    def checkpoint_every(self) -> int:
        """The number of steps between checkpoints."""
        return self.config.training.checkpoint_every or self.evaluate_every

    def describe(self) -> list[str]:
        """Return lines that describe the task, the student and the rows it learns from."""
        rows = f"{len(self.train):,} to train on, {len(self.validation):,} to validate"
        facts = [("task", self.spec.about), *(("", note) for note in self.spec.notes)]
        facts += [
            *self.origin.summary,
            ("rows", rows),
            *self._cut(),
            *self._learned(),
            *self._judge(),
        ]
        for reading in self.readings:
            cut = reading.encoded.cut
            limit = f"; cut: {cut}" if cut else ""
            facts.append(("tokens", f"{', '.join(reading.models)}: another tokenizer{limit}"))
        facts += [("probe", line) for line in (self.probes.describe() if self.probes else ())]
        for teacher in self.spec.live_teachers:
            if teacher.special_tokens:
                other = ", ".join(teacher.special_tokens)
                facts.append(("tokens", f"{teacher.info.name}: the student's ids; its {other}"))
        width = max(len(name) for name, _ in facts)
        return [f"{name:<{width}}  {value}" for name, value in facts]

    def _cut(self) -> Iterator[tuple[str, str]]:
        """Yield how many of the texts to train on are too long, if any are."""
        if cut := self.train.cut:
            yield "", f"cut at {self.spec.max_length} tokens (task.max_length): {cut}"
        if out := self.train.num_left_out:
            yield "", f"{out:,} without an answer are left out"

    def _learned(self) -> Iterator[tuple[str, str]]:
        """Yield how many tokens are learned, if not all are."""
        packed = self.train.num_packed
        if packed:
            full = len(self.train.ids) / (len(self.train) * self.spec.max_length)
            yield "", f"{packed:,} packed into {len(self.train):,} blocks, {full:.0%} full"
        learned = self.train.learned
        if learned is not None:
            share, longest = learned.mean(), int(self.train.lengths.max())
            counted = f"{int(learned.sum()):,} of {len(learned):,} tokens are learned"
            yield "", f"{counted} ({share:.0%}); the longest row has {longest:,}"

    def _judge(self) -> Iterator[tuple[str, str]]:
        """Yield how students are judged, if not by labels."""
        spec = self.spec
        if spec.is_unlabeled(spec.data.validation):
            teacher = spec.live_teachers[0].called
            reason = "the rows to validate have no labels (task.label names their column)"
            yield "judge", f"{spec.agreement_with(teacher)}: {reason}"

    def rollout(self, batches: Sequence[Batch], step: Step) -> Sequence[Batch]:
        """Return the micro-batches of a step, with the text that models write in it.

        Teachers with prompts of their own read the same text behind these.
        """
        written = batches if self.rollouts is None else self.rollouts.apply(batches, step)
        for prompts in self.other_prompts:
            widths = max_over_ranks(map(prompts.longest, written))
            written = [
                replace(batch, views={**batch.views, prompts.teacher: prompts.view(batch, width)})
                for batch, width in zip(written, widths, strict=True)
            ]
        return written

    def due(self, step: int, every: int) -> bool:
        """Return whether `step` is a multiple of `every` or the last step."""
        return step % every == 0 or step == self.total_steps


def build_stage(spec: StageSpec, registry: Registry, directory: Path, start: Path | None) -> Stage:
    """Load the models and data of a stage.

    Args:
        spec: The spec of the stage.
        registry: Provides adapters for architectures.
        directory: The directory for checkpoints.
        start: The student that an earlier stage passes on; None builds one.
    """
    config = spec.config
    directory.mkdir(parents=True, exist_ok=True)
    groups = arrange(spec.layout)
    if groups is not None:
        set_patience(spec.config.parallel.timeout, groups.every)
    live = {t.info.name: _load_teacher(spec, t, registry, groups) for t in spec.live_teachers}
    first = live.get(spec.teachers[0].info.name) if spec.teachers else None
    student = _student(spec, first, registry, start, groups)
    student = _with_adapters(student, spec, registry, start)
    source = spec.config.student.model if start is None else str(start)
    adopt_generation_config(student.model, source or spec.teachers[0].trained, "student.model")
    if source is None and spec.vocabulary is not None and student.model.can_generate():
        renumber_settings(student.model.generation_config, spec.vocabulary.kept)
    if spec.end_token is not None:
        end_with(student.model, spec.tokenizer.eos_token_id)
    device = pick_device(config.parallel.device)
    dtypes = {teacher.name: teacher.dtype for teacher in config.teachers}
    for teacher in spec.live_teachers:
        name = teacher.info.name
        settle_teacher(live[name], teacher, dtypes[name], groups, device)
    stage = assemble_stage(spec, registry, directory, student, live)
    stage.probes = build_probes(stage)
    sampling = spec.sampling
    stage.samples = None if sampling is None else SampleAnswers(spec, sampling)
    return _judged_by_teacher(stage) if spec.is_unlabeled(spec.data.validation) else stage


def _judged_by_teacher(stage: Stage) -> Stage:
    """Return a stage whose validation rows have the answers of its first teacher as labels."""
    spec, teacher = stage.spec, stage.live_teachers[0]
    rows = answered(
        spec,
        spec.data.validation,
        teacher.model,
        spec.live_teachers[0].tokenizer,
        stage.engine.device,
        lambda batch: teacher.predict(batch.inputs),
    )
    return replace(stage, judged_rows=rows, validation=spec.encode(rows, spec.tokenizer))


def assemble_stage(
    spec: StageSpec,
    registry: Registry,
    directory: Path,
    student: Student,
    live: Mapping[str, Sites],
    make_engine: EngineMaker = build_engine,
) -> Stage:
    """Assemble a stage from loaded models.

    Args:
        spec: The spec of the stage.
        registry: Provides adapters for architectures.
        directory: The directory for checkpoints.
        student: The student.
        live: The teachers whose models run, by name, already placed.
        make_engine: Makes the engine that optimizes the student.
    """
    config, data = spec.config, spec.data
    device = pick_device(config.parallel.device)
    set_padding(student.model, spec.tokenizer)
    prepare_model(student.model, spec, spec.tokenizer)
    for teacher in spec.live_teachers:
        prepare_model(live[teacher.info.name].model, spec, teacher.tokenizer)
    if config.training.gradient_checkpointing:
        student.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={
                "use_reentrant": False,
                "context_fn": checkpoint_contexts,
            }
        )
    objective = Objective(spec.members)
    objective.build_modules(config.seed)
    teachers = [
        Extractor(live[teacher.info.name].model, live[teacher.info.name])
        if teacher.source is None
        else SourcedTeacher(teacher.source)
        for teacher in (spec.teachers if spec.reads_teachers else ())
    ]
    rows, train = encode_training_rows(spec, device)
    sampler = Sampler(
        train.lengths,
        config.training.batch_size,
        config.training.accumulation,
        config.seed,
        config.training.length_bucketing,
    )
    offloads = device.type != "cpu" and len(teachers) > 1
    total = config.training.steps or config.training.epochs * sampler.steps_per_epoch
    sites = student.sites or find_sites(student.model, registry.sites)
    every = find_parts(sites)
    parts = every if objective.tells_parts_apart else {}
    chosen = ChosenOptimizer(registry.make_optimizer(config), every)
    collator = spec.collator(spec.tokenizer)
    learner = Extractor(student.model, sites)
    rollouts = build_rollouts(spec, registry, learner, teachers, collator.pad_id, device)
    own = f" rank {data_rank()}" if data_rank() else ""
    torch.manual_seed(name_seed(config.seed, f"stage {spec.name}{own}"))
    return Stage(
        name=spec.name,
        spec=spec,
        directory=directory,
        origin=student,
        student=learner,
        teachers=teachers,
        objective=objective,
        engine=make_engine(student.model, objective.modules, config, total, device, parts, chosen),
        optimizer=chosen.factory,
        feature_offload=FeatureOffload(device) if offloads else None,
        train=train,
        validation=spec.encode(data.validation, spec.tokenizer),
        judged_rows=data.validation,
        collator=collator,
        sampler=sampler,
        total_steps=total,
        readings=tuple(_readings(spec, rows, train)),
        rollouts=rollouts,
        other_prompts=tuple(_other_prompts(spec, rows, train, collator.pad_id)),
    )


def _other_prompts(
    spec: StageSpec, rows: Split, train: Encoded, pad_id: int
) -> Iterator[OtherPrompts]:
    """Yield the prompts of teachers that have others than the student."""
    texts = train.extra[TEXTS].tolist() if TEXTS in train.extra else range(len(train))
    for settings in spec.config.teachers if spec.reads_teachers else ():
        if settings.prompt is not None:
            yield other_prompts(settings.name, settings.prompt, rows, texts, spec.tokenizer, pad_id)


def encode_training_rows(spec: StageSpec, device: torch.device) -> tuple[Split, Encoded]:
    """Return the training rows of a stage, augmented, and what the student reads of them.

    Args:
        spec: The spec of the stage.
        device: Device of a model that proposes words.
    """
    rows = augmented(spec.data.train, spec.config, spec.kind, device)
    rows = replace(rows, byte_offsets=spec.needs_byte_offsets)
    train = spec.encode(rows, spec.tokenizer)
    if spec.config.task.packing:
        train = pack(train, spec.max_length, whole=rows.chat or rows.target is not None)
    return rows, train


def read_by(spec: StageSpec, number: int, device: torch.device) -> tuple[Encoded, Collator]:
    """Return the training rows as a teacher reads them, and what makes batches of them."""
    rows, train = encode_training_rows(spec, device)
    name = spec.teachers[number].info.name
    own = (one for one in _readings(spec, rows, train) if name in one.models)
    reading = next(own, None)
    if reading is None:
        return train, spec.collator(spec.tokenizer)
    return reading.encoded, reading.collator


def load_live_teacher(
    spec: StageSpec, number: int, registry: Registry, device: torch.device
) -> Extractor:
    """Load a teacher alone, whole and in this process."""
    source = spec.teachers[number]
    sites = _load_teacher(spec, source, registry, None)
    settle_teacher(sites, source, spec.config.teachers[number].dtype, None, device)
    prepare_model(sites.model, spec, source.tokenizer)
    return Extractor(sites.model, sites)


def _readings(spec: StageSpec, rows: Split, train: Encoded) -> Iterator[Reading]:
    """Yield the training rows in the tokens of each tokenizer besides the student's."""
    for tokenizer, teachers in spec.other_tokenizers:
        limit = min(teacher.info.max_length for teacher in teachers)
        # The student cuts long texts into blocks, which may take more of another's tokens.
        longest = min(limit, (2 if spec.kind.is_lm else 1) * spec.max_length)
        classes = spec.data.classes
        encoded = encode_again(spec.kind, rows, train, tokenizer, longest, classes)
        spec.check_ids(encoded, tokenizer)
        yield Reading(
            models=tuple(teacher.info.name for teacher in teachers),
            encoded=encoded,
            collator=spec.collator(tokenizer),
        )


def prepare_model(
    model: PreTrainedModel, spec: StageSpec, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Make a model return the logits of a stage's kind of task, wherever its rows are padded.

    Args:
        model: The model.
        spec: The stage.
        tokenizer: The tokenizer whose rows it reads.
    """
    reads_rows = spec.kind.predicted == "sample" and spec.kind.pools
    follow_mask(model, tokenizer.padding_side == "left", reads_rows)
    spec.kind.prepare(model, spec.data.classes)


def settle_teacher(
    teacher: Sites,
    source: TeacherSpec,
    dtype: str,
    groups: Groups | None,
    device: torch.device,
) -> None:
    """Convert the weights of a loaded teacher to `dtype` and place them.

    Args:
        teacher: The teacher.
        source: The source it was loaded from.
        dtype: `fp32` or `bf16`.
        groups: The process groups, if models are sharded.
        device: The device it runs on.
    """
    copies = None if groups is None else groups.copies[source.info.name]
    if dtype == "bf16":
        for weight in teacher.model.parameters():
            weight.data = weight.data.bfloat16()  # buffers, such as rotary angles, stay exact
    place_teacher(teacher.model, teacher.blocks, source.placement, device, copies)


def _load_teacher(
    spec: StageSpec, source: TeacherSpec, registry: Registry, groups: Groups | None
) -> Sites:
    model = load_teacher(
        source.trained,
        spec.kind,
        spec.data.classes,
        source.trust_remote_code,
        source.setting,
        None if groups is None else shard_reader(groups.teachers[source.info.name]),
    )
    if source.vocabulary is not None:
        renumber(model, source.vocabulary.kept)
    return find_sites(model, registry.sites)


def _student(
    spec: StageSpec,
    first: Sites | None,
    registry: Registry,
    start: Path | None,
    groups: Groups | None,
) -> Student:
    """Return the student; under tensor parallelism, this rank's shard.

    Args:
        spec: The stage.
        first: The first teacher, if it is loaded.
        registry: Provides adapters for architectures.
        start: Student that an earlier stage hands on, or None to make one.
        groups: The process groups, if there are several ranks.
    """
    place = spec.config.student.model if start is None else str(start)
    lora = spec.config.student.lora
    if spec.shares_weights and first is not None and lora is not None:
        return _sharing(first.model, spec, lora)
    if place is not None:
        return _from_checkpoint(spec, first, place, start is None, groups)
    if spec.copies_teacher or first is not None:
        made = _from_teacher(spec, first, registry, groups)
    else:
        made = fresh_student(spec.student_config, spec.kind, spec.config.seed, spec.trusts_student)
    if groups is not None:
        from gkd_core.parallel.sharding import shard_model

        shard_model(made.model, groups.tensor)
        made = replace(made, sites=None)  # sharding replaces modules
    return made


def _with_adapters(
    student: Student, spec: StageSpec, registry: Registry, start: Path | None
) -> Student:
    """Return the student with the adapters of `student.lora`, if it has any."""
    config = spec.config
    if config.student.lora is None:
        return student
    sites = student.sites or find_sites(student.model, registry.sites)
    base = config.student.model if start is None else str(start)
    if base is None and spec.is_whole_teacher:
        base = spec.teachers[0].trained
    place = None if base is None else named_path(base)
    if place is not None and place.is_dir():
        base = str(place.resolve())
    return add_lora(student, sites, config.student.lora, spec.kind.is_lm, config.seed, base)


def _sharing(teacher: PreTrainedModel, spec: StageSpec, lora: LoraConfig) -> Student:
    """Return a copy of the first teacher that has its tensors as frozen weights."""
    model = copy_sharing(teacher, lora, spec.kind.is_lm)
    said = f"{spec.start}; its frozen weights are those of {spec.teachers[0].called}, held once"
    return Student(model, [*describe(model, teacher), ("start", said)])


def _from_teacher(
    spec: StageSpec,
    first: Sites | None,
    registry: Registry,
    groups: Groups | None,
) -> Student:
    """Return a smaller copy of the first teacher, which need not be loaded whole."""
    source, data = spec.teachers[0], spec.data
    weights: Mapping[str, Tensor] | None = None
    if groups is None:
        teacher = _load_teacher(spec, source, registry, None) if first is None else first
    else:
        from gkd_core.parallel.loading import StoredWeights

        whole = meta_model(spec.kind, source.config, source.trust_remote_code)
        teacher = find_sites(whole, registry.sites)
        weights = StoredWeights(whole, source.trained, source.setting)
        if source.vocabulary is not None:
            weights = RenumberedWeights(weights, whole, source.vocabulary.kept)
    config = spec.config
    made = build_student(
        config.student, teacher, spec.kind, data.classes, config.seed, registry.sites, weights
    )
    if config.student.scale is None:
        return made
    return _scaled(made, spec, teacher.model)


def _from_checkpoint(
    spec: StageSpec,
    first: Sites | None,
    place: str,
    is_own: bool,
    groups: Groups | None,
) -> Student:
    config, data = spec.config, spec.data
    loaded = load_model(
        place,
        spec.kind,
        data.classes,
        config.seed,
        spec.trusts_student,
        "student.model" if is_own else "the stage before",
        None if groups is None else shard_reader(groups.tensor),
    )
    fresh = [("random weights", ", ".join(loaded.initialized))] if loaded.initialized else []
    size = describe(loaded.model, None if first is None else first.model)
    summary = [*size, ("start", spec.start), *fresh]
    return Student(loaded.model, summary, initialized=loaded.initialized)


def _scaled(student: Student, spec: StageSpec, teacher: PreTrainedModel) -> Student:
    """Return the student reduced to the heads and neurons that `student.scale` keeps."""
    scale = spec.config.student.scale
    assert scale is not None, "the caller checks `student.scale`"
    assert student.sites is not None, "a copy of a teacher has sites"
    set_padding(student.model, spec.tokenizer)
    prepare_model(student.model, spec, spec.tokenizer)
    calibrate = partial(calibration_batches, spec)
    made = scale_student(student.sites, teacher.config, scale, calibrate)
    kept = f"{scale:g} of the heads and neurons, {made.origin}"
    start = [row for row in student.summary if row[0] == "start"]
    return Student(made.model, [*describe(made.model, teacher), *start, ("kept", kept)])


def shard_reader(group: ProcessGroup) -> WeightReader | None:
    """Return a sharded checkpoint reader, or None if one process holds the whole model."""
    if group.size() == 1:
        return None
    from gkd_core.parallel.loading import ShardReader

    return ShardReader(group, torch.device("cpu"))
