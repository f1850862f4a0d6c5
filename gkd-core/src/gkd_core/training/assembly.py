"""A stage of a run from its spec: models loaded, rows encoded, an engine around the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from gkd_core.config.schema import RunConfig
from gkd_core.data.encode import Encoded
from gkd_core.data.sampler import Sampler
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.groups import arrange, data_rank
from gkd_core.distributed.ranks import set_patience
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.hooks.forward import checkpoint_contexts
from gkd_core.models.generation import adopt_generation_config, end_with
from gkd_core.models.parts import find_parts
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.tokenizer import set_padding
from gkd_core.objective.objective import Objective, name_seed
from gkd_core.optim.engine import EngineMaker, build_engine
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.plugins import Registry
from gkd_core.probes.probes import build_probes
from gkd_core.students.build import Student
from gkd_core.teachers.teacher import SourcedTeacher, Teacher
from gkd_core.training.agreement import answered
from gkd_core.training.rollouts import build_rollouts
from gkd_core.training.sample_answers import SampleAnswers
from gkd_core.training.stage import Stage
from gkd_core.training.stage_models import load_source, prepare_model, settle_teacher
from gkd_core.training.stage_rows import encode_training_rows, prompts_of_teachers, readings_of
from gkd_core.training.stage_spec import StageSpec
from gkd_core.training.stage_student import make_student
from gkd_core.vocabulary.weights import renumber_settings


def build_stage(spec: StageSpec, registry: Registry, directory: Path, start: Path | None) -> Stage:
    """Load the models and data of a stage.

    Args:
        spec: The spec of the stage.
        registry: Provides adapters for architectures.
        directory: The directory for checkpoints.
        start: The student that an earlier stage passes on; None builds one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    groups = arrange(spec.layout)
    if groups is not None:
        set_patience(spec.config.parallel.timeout, groups.every)
    live = {t.info.name: load_source(spec, t, registry, groups) for t in spec.live_teachers}
    first = live.get(spec.teachers[0].info.name) if spec.teachers else None
    student = make_student(spec, first, registry, start, groups)
    _set_generation(student.model, spec, start)
    device = pick_device(spec.config.parallel.device)
    dtypes = {teacher.name: teacher.dtype for teacher in spec.config.teachers}
    for teacher in spec.live_teachers:
        name = teacher.info.name
        settle_teacher(live[name], teacher, dtypes[name], groups, device)
    stage = assemble_stage(spec, registry, directory, student, live)
    stage.probes = build_probes(stage)
    sampling = spec.sampling
    stage.samples = None if sampling is None else SampleAnswers(spec, sampling)
    return _judged_by_teacher(stage) if spec.is_unlabeled(spec.data.validation) else stage


def _set_generation(student: PreTrainedModel, spec: StageSpec, start: Path | None) -> None:
    """Give a student the settings and the end token with which it will write text."""
    source = spec.config.student.model if start is None else str(start)
    adopt_generation_config(student, source or spec.teachers[0].trained, "student.model")
    if source is None and spec.vocabulary is not None and student.can_generate():
        renumber_settings(student.generation_config, spec.vocabulary.kept)
    if spec.end_token is not None:
        end_with(student, spec.tokenizer.eos_token_id)


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
    config, validation = spec.config, spec.data.validation
    device = pick_device(config.parallel.device)
    _prepare_models(spec, student.model, live)
    objective = Objective(spec.members)
    objective.build_modules(config.seed)
    teachers = _teachers(spec, live)
    rows, train = encode_training_rows(spec, device)
    sampler = _sampler(config, train)
    total = config.training.steps or config.training.epochs * sampler.steps_per_epoch
    sites = student.sites or find_sites(student.model, registry.sites)
    every = find_parts(sites)
    parts = every if objective.tells_parts_apart else {}
    chosen = ChosenOptimizer(registry.make_optimizer(config), every)
    collator = spec.collator(spec.tokenizer)
    learner = Extractor(student.model, sites)
    rollouts = build_rollouts(spec, registry, learner, teachers, collator.pad_id, device)
    _seed(spec)
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
        feature_offload=_feature_offload(teachers, device),
        train=train,
        validation=spec.encode(validation, spec.tokenizer),
        judged_rows=validation,
        collator=collator,
        sampler=sampler,
        total_steps=total,
        readings=tuple(readings_of(spec, rows, train)),
        rollouts=rollouts,
        other_prompts=tuple(prompts_of_teachers(spec, rows, train, collator.pad_id)),
    )


def _prepare_models(spec: StageSpec, student: PreTrainedModel, live: Mapping[str, Sites]) -> None:
    """Prepare the student and the teachers whose models run for the kind of task."""
    set_padding(student, spec.tokenizer)
    prepare_model(student, spec, spec.tokenizer)
    for teacher in spec.live_teachers:
        prepare_model(live[teacher.info.name].model, spec, teacher.tokenizer)
    if spec.config.training.gradient_checkpointing:
        settings = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _teachers(spec: StageSpec, live: Mapping[str, Sites]) -> list[Teacher]:
    """Return the teachers that the objective reads: models that run, or sources of answers."""
    return [
        Extractor(live[teacher.info.name].model, live[teacher.info.name])
        if teacher.source is None
        else SourcedTeacher(teacher.source)
        for teacher in (spec.teachers if spec.reads_teachers else ())
    ]


def _sampler(config: RunConfig, train: Encoded) -> Sampler:
    training = config.training
    return Sampler(
        train.lengths,
        training.batch_size,
        training.accumulation,
        config.seed,
        training.length_bucketing,
    )


def _feature_offload(teachers: Sequence[Teacher], device: torch.device) -> FeatureOffload | None:
    """Return host memory for the features of several teachers; None if the host computes."""
    return FeatureOffload(device) if device.type != "cpu" and len(teachers) > 1 else None


def _seed(spec: StageSpec) -> None:
    """Seed what a stage draws, differently on ranks with other rows."""
    own = f" rank {data_rank()}" if data_rank() else ""
    torch.manual_seed(name_seed(spec.config.seed, f"stage {spec.name}{own}"))
