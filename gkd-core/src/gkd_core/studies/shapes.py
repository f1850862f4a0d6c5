"""Shapes of students, and what they cost before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerFast

from gkd_core.analysis.comparison import ComparedModel, compare_models
from gkd_core.config.schema import StudentConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.model_info import ModelInfo
from gkd_core.deploy.latency import latencies
from gkd_core.distributed.device import pick_device
from gkd_core.kinds.metrics import Metric
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.students.build import fresh_student
from gkd_core.students.shape import student_config
from gkd_core.studies.budget import Budget
from gkd_core.training.stage import prepare_model
from gkd_core.training.stage_spec import StageSpec

DEPTHS = 5
"""Numbers of blocks that are tried at most."""

WIDTHS = (1.0, 0.75, 0.5)
"""Widths that are tried, as shares of the teacher's heads."""

TIMED_ROWS = 16


@dataclass(frozen=True)
class Shape:
    """The shape of a student.

    Attributes:
        layers: Number of blocks.
        hidden_size: Width of the residual stream.
        heads: Attention heads, each as wide as the teacher's.
    """

    layers: int
    hidden_size: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden_size}"

    @property
    def settings(self) -> dict[str, int]:
        """The settings of a run whose student has this shape."""
        return {
            "student.layers": self.layers,
            "student.hidden_size": self.hidden_size,
            "student.heads": self.heads,
        }


@dataclass(frozen=True)
class MeasuredShape:
    """A shape and what it costs.

    Attributes:
        shape: The shape.
        weights: Number of weights.
        milliseconds: Median time for one sample; None if it was not measured, as it is too large.
        reason: Why it misses the budget; empty if it does not.
    """

    shape: Shape
    weights: int
    milliseconds: float | None
    reason: str


def shapes_of(teacher: ModelInfo) -> list[Shape]:
    """Return shapes of students that are at most as deep and as wide as a teacher.

    Args:
        teacher: Its shape.
    """
    count = min(DEPTHS, teacher.layers)
    depths = {round((n + 1) * teacher.layers / count) for n in range(count)}
    group = teacher.heads // teacher.kv_heads
    heads = {max(1, round(share * teacher.kv_heads)) * group for share in WIDTHS}
    return [
        Shape(depth, teacher.hidden_size * own // teacher.heads, own)
        for depth in sorted(depths)
        for own in sorted(heads)
        if teacher.hidden_size * own % teacher.heads == 0
    ]


def measure_shapes(
    spec: StageSpec, shapes: Sequence[Shape], budget: Budget
) -> tuple[float, list[MeasuredShape]]:
    """Return the latency of the teacher, and what each shape costs.

    The median is over validation rows, one at a time. All models alternate, so that changes in the
    speed of the machine affect them equally.

    Args:
        spec: The stage that students are to be trained in.
        shapes: The shapes.
        budget: What they may cost.
    """
    teacher = spec.teachers[0]
    device = pick_device(spec.config.parallel.device)
    models = [
        load_teacher(
            teacher.model, spec.kind, spec.data.classes, teacher.trust_remote_code, teacher.called
        )
    ]
    own, weights = models[0].config, {}
    prepare_model(models[0], spec, teacher.tokenizer)
    timed = []
    for shape in shapes:
        wanted = StudentConfig(
            layers=shape.layers, hidden_size=shape.hidden_size, heads=shape.heads, init="random"
        )
        config = student_config(wanted, own, spec.kind, spec.data.classes)
        model = fresh_student(config, spec.kind, 0, teacher.trust_remote_code).model
        weights[shape] = count_parameters(model)
        if not budget.too_large(weights[shape]):
            prepare_model(model, spec, spec.tokenizer)
            models.append(model)
            timed.append(shape)
    ready = [model.eval().to(device) for model in models]
    rows = [_rows(spec, teacher.tokenizer)] + [_rows(spec, spec.tokenizer)] * len(timed)
    first, *others = latencies(ready, [[row.to(device) for row in own] for own in rows])
    times = dict(zip(timed, others, strict=True))
    return first, [_measured(s, weights[s], times, first, budget) for s in shapes]


def _measured(
    shape: Shape, weights: int, times: Mapping[Shape, float], teacher: float, budget: Budget
) -> MeasuredShape:
    reason, time = budget.too_large(weights), times.get(shape)
    if time is not None:
        reason = reason or budget.too_slow(time, teacher)
    return MeasuredShape(shape, weights, time, reason)


def _rows(spec: StageSpec, tokenizer: PreTrainedTokenizerFast) -> list[Batch]:
    encoded = spec.encode(spec.data.validation, tokenizer)
    collator = spec.collator(tokenizer)
    first = range(min(TIMED_ROWS, len(encoded)))
    return [collator.collate(encoded, [row], epoch=0) for row in first]


def teacher_quality(spec: StageSpec) -> tuple[float, Metric]:
    """Return the metric of the teacher on validation rows.

    Args:
        spec: The stage that students are to be trained in.
    """
    teacher = spec.teachers[0]
    own = ComparedModel(teacher.called, teacher.model, teacher.tokenizer, teacher.trust_remote_code)
    on_validation = replace(spec, data=replace(spec.data, test=None))
    comparison = compare_models(on_validation, [own], own.name)
    metric = spec.metric_on(spec.data.validation)
    return comparison.rows[0].metrics[metric.name], metric
