"""The simulation of a stage's training step on one of many GPUs, without a GPU or weights.

The stage is built and trained by the same code as in a real run. Its tensors are fake: they have a
shape but no content, so a model of any size fits. The other ranks are simulated too: collective
operations return at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_core.config.schema import RunConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.step import Step
from gkd_core.data.collate import Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.readings import Reading, with_views
from gkd_core.distributed import messages
from gkd_core.distributed.groups import Groups, arrange, teardown
from gkd_core.distributed.layout import Layout
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.hooks.features import Answer
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.losses.relation import Relation
from gkd_core.models.adapters import has_adapters, trained_weights
from gkd_core.models.parts import Parts
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import Sites, find_sites
from gkd_core.optim.engine import Engine, LocalEngine, build_engine
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.planning.estimate import Estimate
from gkd_core.planning.memory_tracker import HOST, ON_DEVICE, MemoryKind, MemoryTracker
from gkd_core.planning.shapes import build_shape, put_adapters
from gkd_core.planning.zero import ZeroEngine, check_modeled
from gkd_core.plugins import Registry
from gkd_core.probes.probes import build_probes
from gkd_core.students.build import Student
from gkd_core.students.lora import copy_sharing
from gkd_core.teachers.source import AnswerSource
from gkd_core.training.assembly import assemble_stage
from gkd_core.training.stage import Stage
from gkd_core.training.stage_models import settle_teacher
from gkd_core.training.stage_spec import StageSpec
from gkd_core.training.step import train_step

STEPS = 2
"""Number of simulated steps; what the first one allocates, such as AdamW's moments, stays."""


def simulate(spec: StageSpec, registry: Registry, every: bool = False) -> Estimate:
    """Return the cost of a training step of a stage on each GPU.

    All rows have the maximum length. Nothing is read, written or sent.

    Args:
        spec: The stage, built by a `ShapeSpecBuilder`.
        registry: The plugins.
        every: Simulate every micro-batch. Otherwise one in the middle stands for all between the
            first and the last; the estimate is the same.

    Raises:
        MethodError: What a method computes depends on the values of tensors.
    """
    check_modeled(spec)
    with _refusing(str(spec.expression)):
        return _simulate(spec, registry, every)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn errors about unknown values into one that says what cannot be simulated, and why."""
    try:
        yield
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise MethodError(
            f"{name} cannot be simulated: what it computes depends on the values of tensors that "
            f"a model produces ({error}). Plan with another method that reads the same sites, such "
            "as match"
        ) from error


def _simulate(spec: StageSpec, registry: Registry, every: bool) -> Estimate:
    begun = time.perf_counter()
    tracker = MemoryTracker()
    batches = MicroBatches(_batch(spec), _repeats(spec, every), tracker)
    with _imagined(spec.layout) as groups, _fake_models(), tracker:
        stage, counts = _build(spec, registry, tracker, groups)
        _watch(stage, tracker)
        for index in range(STEPS):
            tracker.begin()
            step = Step(index, STEPS, 0, stage.name, torch.default_generator)
            train_step(stage, batches, step)
        flops, sent = tracker.flops, dict(tracker.sent)
        return Estimate(
            stage=spec.name,
            probe_flops=_probe(stage, batches[0], step, tracker),
            memory={kind: tracker.peak[kind] for kind in ON_DEVICE if tracker.peak[kind]},
            host=tracker.host_peak,
            flops=flops,
            sent=sent,
            parameters=counts,
            seconds=time.perf_counter() - begun,
        )


def _probe(stage: Stage, batch: Batch, step: Step, tracker: MemoryTracker) -> int:
    """Return the floating-point operations of a measurement of the probes; 0 without probes.

    Its memory counts for the peak.
    """
    probes = build_probes(stage)
    if probes is None or not probes.compares:
        return 0
    tracker.begin()
    probes.compare(stage, batch, step)
    return tracker.flops


@contextmanager
def _imagined(layout: Layout) -> Iterator[Groups | None]:
    """Act as rank 0 of several, none of the others existing; yield its groups."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if layout.world == 1:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=layout.world, store=FakeStore())
    groups = arrange(layout)
    try:
        # The other ranks are assumed to hold the same objects as this one.
        with patch.object(messages, "gather", lambda value, group: [value] * group.size()):
            yield groups
    finally:
        if groups is not None:
            teardown()
        dist.destroy_process_group()


@contextmanager
def _fake_models() -> Iterator[None]:
    """Make all tensors fake, and `Module.to` do nothing: fake modules cannot be moved."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(nn.Module, "to", lambda module, *_, **__: module),
    ):
        yield


def _without_rows(spec: StageSpec) -> StageSpec:
    data = spec.data
    row = spec.kind.one_row(data.train)
    parallel = spec.config.parallel.model_copy(update={"device": "cpu"})
    task = spec.config.task.model_copy(update={"augment": 0})
    alone = {"parallel": parallel, "task": task, "rollout": None, "writing": None}
    config = spec.config.model_copy(update=alone)
    teachers = tuple(
        teacher if teacher.source is None else replace(teacher, source=AnswerShapes(teacher.info))
        for teacher in spec.teachers
    )
    return replace(
        spec,
        settings=replace(spec.settings, config=config),
        data=replace(data, train=row, validation=row, test=None),
        teachers=teachers,
    )


class AnswerShapes(AnswerSource):
    """Answers without content, for teachers that are not live."""

    name = "shapes"

    def __init__(self, teacher: ModelInfo) -> None:
        super().__init__(self.Config(), teacher)

    def missing(self, capture: Capture) -> None:
        """Return that nothing is missing: the source that it stands for was asked."""

    def fingerprint(self) -> str:
        """Return nothing: no student is made of its answers."""
        return ""

    def answer(
        self, captures: Collection[Capture], batch: Batch, step: Step
    ) -> Mapping[Capture, Answer]:
        """Return empty tensors of the right shape."""
        rows, length = batch.inputs["input_ids"].shape
        return {capture: self._empty(capture, rows, length) for capture in captures}

    def _empty(self, capture: Capture, rows: int, length: int) -> Answer:
        if capture.site != "attention":
            return torch.empty(capture.shape(self.teacher, rows, length))
        query, key = (
            torch.empty(Capture(site, capture.layer).shape(self.teacher, rows, length))
            for site in ("query", "key")
        )
        return Relation(query, key, mask=None, causal=False, scale=1.0)


def _build(
    spec: StageSpec, registry: Registry, tracker: MemoryTracker, groups: Groups | None
) -> tuple[Stage, dict[str, int]]:
    """Return the stage, and the number of weights of each model."""
    on_cpu = spec.config.parallel.device == "cpu"
    spec = _without_rows(spec)
    live, counts = _build_teachers(spec, registry, tracker, groups, on_cpu)
    with tracker.track("student weights"):
        model, own = _build_student(spec, registry, live, groups, on_cpu)
        student, make_engine = Student(model.train(), []), partial(_engine, tracker)
        stage = assemble_stage(spec, registry, Path(), student, live, make_engine)
    if len(stage.teachers) > 1 and not on_cpu:
        stage.feature_offload = FeatureOffload(torch.device("cpu"))
    return stage, counts | own


def _build_teachers(
    spec: StageSpec,
    registry: Registry,
    tracker: MemoryTracker,
    groups: Groups | None,
    on_cpu: bool,
) -> tuple[dict[str, Sites], dict[str, int]]:
    """Return the teachers whose models run, and the number of weights of each, by name."""
    dtypes = {teacher.name: teacher.dtype for teacher in spec.config.teachers}
    live, counts = {}, {}
    for source in spec.live_teachers:
        name, trusts = source.info.name, source.trust_remote_code
        with tracker.track(HOST if source.placement == "offload" else "teacher weights"):
            teacher = build_shape(source.config, spec.kind, spec.data.classes, trusts, on_cpu)
            teacher.requires_grad_(False).eval()
            counts[name] = count_parameters(teacher)
            _divide(teacher, None if groups is None else groups.teachers[name])
            live[name] = find_sites(teacher, registry.sites)
            settle_teacher(live[name], source, dtypes[name], groups, torch.device("cpu"))
    return live, counts


def _build_student(
    spec: StageSpec,
    registry: Registry,
    live: Mapping[str, Sites],
    groups: Groups | None,
    on_cpu: bool,
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Return the student, and the numbers of its weights: all and, with adapters, the trained."""
    model = _student_shape(spec, live, on_cpu)
    counts = {"student": count_parameters(model)}
    put_adapters(model, spec, registry)
    counts |= _trained(model)
    _divide(model, None if groups is None else groups.tensor)
    return model, counts


def _student_shape(spec: StageSpec, live: Mapping[str, Sites], on_cpu: bool) -> PreTrainedModel:
    """Return a student without adapters, on the weights of its teacher if they share them."""
    lora = spec.config.student.lora
    if spec.shares_weights and lora is not None:
        teacher = live[spec.teachers[0].info.name]
        return copy_sharing(teacher.model, lora, spec.kind.is_lm)
    trusts = spec.trusts_student
    return build_shape(spec.student_config, spec.kind, spec.data.classes, trusts, on_cpu)


def _trained(model: PreTrainedModel) -> dict[str, int]:
    """Return the number of trained weights of a student under a name, if it has adapters."""
    if not has_adapters(model):
        return {}
    return {"student (trained)": sum(weight.numel() for weight in trained_weights(model))}


def _divide(model: PreTrainedModel, group: ProcessGroup | None) -> None:
    if group is not None:
        from gkd_core.parallel.sharding import shard_model

        shard_model(model, group)


def _engine(
    tracker: MemoryTracker,
    student: PreTrainedModel,
    modules: nn.Module,
    config: RunConfig,
    total_steps: int,
    device: torch.device,
    parts: Parts,
    chosen: ChosenOptimizer,
) -> Engine:
    """Return the engine of a stage; under ZeRO, one that models DeepSpeed's."""
    if config.parallel.zero == 0:
        engine = build_engine(student, modules, config, total_steps, device, parts, chosen)
        assert isinstance(engine, LocalEngine), "only ZeRO has another"
        engine.scale, engine.halts = None, False  # a fake gradient has no values
        return engine
    return ZeroEngine(student, modules, config, total_steps, device, parts, chosen, tracker)


class MicroBatches(Sequence[Batch]):
    """The simulated micro-batches of a step, all alike.

    Args:
        batch: A micro-batch.
        repeats: Number of real micro-batches that each one stands for.
        tracker: Multiplies the work done on each by that number.
    """

    def __init__(self, batch: Batch, repeats: Sequence[int], tracker: MemoryTracker) -> None:
        self._batches = [batch] * len(repeats)
        self._repeats = repeats
        self._tracker = tracker

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index]

    def __iter__(self) -> Iterator[Batch]:
        for batch, times in zip(self._batches, self._repeats, strict=True):
            with self._tracker.repeated(times):
                yield batch


def _repeats(spec: StageSpec, every: bool) -> Sequence[int]:
    """Return the number of real micro-batches that each simulated one stands for.

    The first finds no gradients and the last is followed by an update; those between are alike.
    """
    count = spec.config.training.accumulation
    return [1] * count if every or count <= 3 else [1, count - 2, 1]


def _batch(spec: StageSpec) -> Batch:
    """Return one rank's micro-batch, whose rows all have the maximum length."""
    training, length = spec.config.training, spec.max_length
    micro = -(-training.batch_size // training.accumulation)
    rows = max(-(-micro // spec.layout.data), 1)
    own, *others = [
        Reading(
            models=names,
            encoded=_longest_rows(spec, tokenizer, rows, length),
            collator=Collator(tokenizer, spec.kind, spec.config.task.mask_share, 1),
        )
        for tokenizer, names in (
            (spec.tokenizer, ("student",)),
            *((other, tuple(t.info.name for t in found)) for other, found in spec.other_tokenizers),
        )
    ]
    batch = own.collator.collate(own.encoded, range(rows), 0)
    batch = with_views(batch, others, range(rows))
    for view in (batch, *batch.views.values()):
        view.counts()  # caches which items count, while there are real values to tell
    return batch


def _longest_rows(
    spec: StageSpec, tokenizer: PreTrainedTokenizerBase, rows: int, length: int
) -> Encoded:
    """Return rows of `length` tokens, each a byte of text where tokenizers differ."""
    token = next(t for t in range(len(tokenizer)) if t not in tokenizer.all_special_ids)
    known = spec.data.train, tokenizer
    encoded = spec.kind.planned_for(*known, rows, length, token, spec.data.classes)
    if not spec.needs_byte_offsets:
        return encoded
    starts = np.arange(len(encoded.ids), dtype=np.int32)
    return replace(encoded, byte_offsets=np.stack([starts, starts + 1], 1))


def _watch(stage: Stage, tracker: MemoryTracker) -> None:
    """Wrap the parts of a step so that the tracker knows the purpose of what they allocate."""
    if stage.feature_offload is not None:
        _during(stage.feature_offload, "leave", tracker, HOST)
    for teacher in stage.teachers:
        if isinstance(teacher, Extractor):
            _hand_over(teacher, tracker)
    for member in stage.objective.members:
        for method in member.methods:
            _replace(method, "loss", _naming(member.name, method.loss))
    # Random choices of methods, such as the layers of a step, need real values; so do masks.
    for name in ("plan", "declare_items"):
        _replace(stage.objective, name, _in_earnest(getattr(stage.objective, name)))
    _during(stage.student, "run", tracker, "activations")
    for name in ("terms", "total"):
        _during(stage.objective, name, tracker, "logits and loss")
    _during(stage.engine, "backward", tracker, "activations")
    _during(stage.engine, "step", tracker, "optimizer")
    for weight in (*stage.student.model.parameters(), *stage.objective.modules.parameters()):
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(partial(_claim_gradient, tracker))


def _naming(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any) -> Any:
        with _refusing(name):
            return work(*args)

    return named


def _claim_gradient(tracker: MemoryTracker, weight: Tensor) -> None:
    if weight.grad is not None:  # ZeRO may have moved it already
        tracker.claim([weight.grad], "gradients")


def _in_earnest(work: Callable[..., Any]) -> Callable[..., Any]:
    def real(*args: Any) -> Any:
        with _disable_current_modes():
            return work(*args)

    return real


def _during(owner: object, name: str, tracker: MemoryTracker, kind: MemoryKind) -> None:
    _replace(owner, name, tracker.during(kind, getattr(owner, name)))


def _replace(owner: object, name: str, work: Callable[..., Any]) -> None:
    setattr(owner, name, work)


def _hand_over(teacher: Extractor, tracker: MemoryTracker) -> None:
    """Track a teacher's outputs as captured features, its logits together with the student's."""
    stock = teacher.run

    def run(*arguments: Any) -> Any:
        with tracker.track("activations"):
            features = stock(*arguments)
        for capture, tensor in features.tensors.items():
            kind: MemoryKind = "logits and loss" if capture == LOGITS else "captured features"
            tracker.claim([tensor], kind)
        for relation in features.attention.values():
            tracker.claim([relation.query, relation.key], "captured features")
        if features.deferred is not None:
            tracker.claim([features.deferred.hidden], "captured features")
        return features

    _replace(teacher, "run", run)
