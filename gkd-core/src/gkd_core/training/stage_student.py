"""The student with which a stage begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from gkd_core.config.schema import LoraConfig
from gkd_core.distributed.groups import Groups
from gkd_core.models.load import load_model
from gkd_core.models.meta import meta_model
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.tokenizer import set_padding
from gkd_core.named_path import named_path
from gkd_core.plugins import Registry
from gkd_core.students.build import Student, build_student, describe, fresh_student
from gkd_core.students.lora import add_lora, copy_sharing
from gkd_core.students.scale import scale_student
from gkd_core.training.calibration import calibration_batches
from gkd_core.training.stage_models import load_source, prepare_model, shard_reader
from gkd_core.training.stage_spec import StageSpec
from gkd_core.vocabulary.weights import RenumberedWeights


def make_student(
    spec: StageSpec,
    first: Sites | None,
    registry: Registry,
    start: Path | None,
    groups: Groups | None,
) -> Student:
    """Return the student of a stage; under tensor parallelism, this rank's shard.

    Args:
        spec: The stage.
        first: The first teacher, if it is loaded.
        registry: Provides adapters for architectures.
        start: Student that an earlier stage hands on, or None to make one.
        groups: The process groups, if there are several ranks.
    """
    student = _base(spec, first, registry, start, groups)
    return _with_adapters(student, spec, registry, start)


def _base(
    spec: StageSpec,
    first: Sites | None,
    registry: Registry,
    start: Path | None,
    groups: Groups | None,
) -> Student:
    """Return the student without adapters."""
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
        teacher = load_source(spec, source, registry, None) if first is None else first
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
    if config.student.slice is None:
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
    scale = spec.config.student.slice
    assert scale is not None, "the caller checks `student.scale`"
    assert student.sites is not None, "a copy of a teacher has sites"
    set_padding(student.model, spec.tokenizer)
    prepare_model(student.model, spec, spec.tokenizer)
    calibrate = partial(calibration_batches, spec)
    made = scale_student(student.sites, teacher.config, scale, calibrate)
    kept = f"{scale:g} of the heads and neurons, {made.origin}"
    start = [row for row in student.summary if row[0] == "start"]
    return Student(made.model, [*describe(made.model, teacher), *start, ("kept", kept)])
