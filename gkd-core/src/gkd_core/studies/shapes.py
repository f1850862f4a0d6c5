"""Shapes of students, and what they cost before anything is trained."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.analysis.compare import compare_models
from gkd_core.analysis.exam import ComparedModel
from gkd_core.atomic import write_file
from gkd_core.config.schema import StudentConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.model_info import ModelInfo
from gkd_core.deploy.latency import latencies
from gkd_core.distributed.device import pick_device
from gkd_core.kinds.metrics import Metric
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.strict_json import json_text
from gkd_core.students.build import fresh_student
from gkd_core.students.shape import student_config
from gkd_core.studies.budget import Budget
from gkd_core.studies.slices import SCALES, TeacherSlices
from gkd_core.training.stage_models import prepare_model
from gkd_core.training.stage_spec import StageSpec
from gkd_core.vocabulary.weights import renumber

DEPTHS = 6
"""Numbers of blocks that are tried at most; an even number, so that half of them is among these."""

WIDTHS = (1.0, 0.75, 0.5)
"""Widths that are tried, as shares of the teacher's heads."""

TIMED_ROWS = 16

COSTS = "shapes.json"
"""The cost of shapes when a search began."""

SLICE = "slice.json"
"""The cost of a trained slice, in the directory of its run."""


@dataclass(frozen=True)
class Shape:
    """The shape of a student.

    Attributes:
        layers: Number of blocks.
        hidden_size: Width of the residual stream.
        heads: Attention heads, each as wide as the teacher's.
        scale: The share of heads and neurons of such blocks that a slice keeps; None keeps all.
    """

    layers: int
    hidden_size: int
    heads: int
    scale: float | None = None

    def __str__(self) -> str:
        whole = f"{self.layers}x{self.hidden_size}"
        return whole if self.scale is None else f"{whole} at {self.scale:.0%}"

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a run whose student has this shape."""
        if self.scale is not None:
            return {"student.layers": self.layers, "student.scale": self.scale}
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
    group = teacher.heads // teacher.kv_heads
    heads = {max(1, round(share * teacher.kv_heads)) * group for share in WIDTHS}
    return [
        Shape(depth, teacher.hidden_size * own // teacher.heads, own)
        for depth in _depths(teacher)
        for own in sorted(heads)
        if teacher.hidden_size * own % teacher.heads == 0
    ]


def slices_of(teacher: ModelInfo) -> list[Shape]:
    """Return shapes of students that are slices of a teacher's blocks.

    Args:
        teacher: Its shape.
    """
    sizes = teacher.hidden_size, teacher.heads
    return [Shape(depth, *sizes, scale) for depth in _depths(teacher) for scale in SCALES]


def _depths(teacher: ModelInfo) -> list[int]:
    count = min(DEPTHS, teacher.layers)
    return sorted({round((n + 1) * teacher.layers / count) for n in range(count)})


def measure_shapes(
    spec: StageSpec, shapes: Sequence[Shape], budget: Budget
) -> tuple[float, list[MeasuredShape]]:
    """Return the latency of the teacher, and what each shape costs.

    The median is over validation rows, one at a time. Each shape alternates with the teacher, so
    that changes in the speed of the machine affect both equally.

    Args:
        spec: The stage that students are to be trained in.
        shapes: The shapes.
        budget: What they may cost.
    """
    teacher = _TimedModel.teacher(spec)
    slices = TeacherSlices(spec, teacher.model)
    students = ((shape, _TimedModel.student(spec, shape, slices, teacher)) for shape in shapes)
    return _measured(teacher, students, budget)


def measure_student(
    spec: StageSpec, shape: Shape, directory: Path, budget: Budget
) -> tuple[float, MeasuredShape]:
    """Return the latency of the teacher, and what a trained student costs.

    Args:
        spec: The stage of all students.
        shape: Its shape; slices of one shape may differ in the widths of their blocks.
        directory: The student.
        budget: What it may cost.
    """
    teacher, own = _TimedModel.teacher(spec), spec.teachers[0]
    classes, place = spec.data.classes, str(directory)
    model = load_teacher(place, spec.kind, classes, own.trust_remote_code, "the student")
    student = _TimedModel.ready(spec, model, spec.tokenizer)
    reference, (found,) = _measured(teacher, [(shape, student)], budget)
    return reference, found


def measure_slice(
    spec: StageSpec, shape: Shape, directory: Path, budget: Budget, threads: int
) -> MeasuredShape:
    """Return what a trained slice costs, as it was measured on this machine when it was trained.

    Args:
        spec: The stage of all students.
        shape: Its shape.
        directory: The student, in the directory of its run.
        budget: What it may cost.
        threads: Threads of a model.
    """
    path, place = directory.parent / SLICE, [platform.node(), threads]
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("place") == place:
        weights, milliseconds = known["student"]
        if _suffices(weights, milliseconds, budget):
            return _judged(shape, weights, milliseconds, known["teacher"], budget)
    teacher, found = measure_student(spec, shape, directory, budget)
    costs = {"place": place, "teacher": teacher, "student": [found.weights, found.milliseconds]}
    write_file(path, json_text(costs))
    return found


def _measured(
    teacher: _TimedModel, students: Iterable[tuple[Shape, _TimedModel]], budget: Budget
) -> tuple[float, list[MeasuredShape]]:
    found, times = [], [latencies([teacher.model], [teacher.rows])[0]]
    for shape, student in students:
        weights, own = count_parameters(student.model), None
        if not budget.too_large(weights):
            both = latencies([teacher.model, student.model], [teacher.rows, student.rows])
            times.append(both[0])
            own = both[1]
        found.append((shape, weights, own))
    reference = statistics.median(times)
    return reference, [_judged(*each, reference, budget) for each in found]


def shapes_of_search(
    folder: Path, spec: StageSpec, shapes: Sequence[Shape], budget: Budget, threads: int
) -> tuple[float, list[MeasuredShape]]:
    """Return the result of `measure_shapes` from the beginning of a search on this machine.

    Args:
        folder: The folder of the search.
        spec: The stage that students are to be trained in.
        shapes: The shapes.
        budget: What they may cost.
        threads: Threads of a model.
    """
    path = folder / COSTS
    place = [platform.node(), threads]
    known = json.loads(path.read_text()) if path.exists() else {}
    costs = [known.get("shapes", {}).get(str(shape)) for shape in shapes]
    if known.get("place") == place and all(
        cost and _suffices(cost[0], cost[1], budget) for cost in costs
    ):
        teacher = known["teacher"]
        pairs = zip(shapes, costs, strict=True)
        return teacher, [_judged(shape, c[0], c[1], teacher, budget) for shape, c in pairs]
    teacher, found = measure_shapes(spec, shapes, budget)
    costs_of = {str(each.shape): (each.weights, each.milliseconds) for each in found}
    write_file(path, json_text({"place": place, "teacher": teacher, "shapes": costs_of}, indent=1))
    return teacher, found


def _suffices(weights: int, milliseconds: float | None, budget: Budget) -> bool:
    """Return whether what was measured of a shape tells if it is within a budget."""
    return milliseconds is not None or bool(budget.too_large(weights))


@dataclass(frozen=True)
class _TimedModel:
    """A model that is ready to be timed, and rows as it reads them, one in each batch."""

    model: PreTrainedModel
    rows: Sequence[Batch]

    @classmethod
    def teacher(cls, spec: StageSpec) -> _TimedModel:
        """Return the teacher of a stage."""
        own, classes = spec.teachers[0], spec.data.classes
        model = load_teacher(own.model, spec.kind, classes, own.trust_remote_code, own.called)
        if own.vocabulary is not None:
            renumber(model, own.vocabulary.kept)
        return cls.ready(spec, model, own.tokenizer)

    @classmethod
    def student(
        cls, spec: StageSpec, shape: Shape, slices: TeacherSlices, teacher: _TimedModel
    ) -> _TimedModel:
        """Return a student of a shape: a slice of the teacher, or one with random weights."""
        if shape.scale is not None:
            return cls.ready(spec, slices.cut(shape.layers, shape.scale), spec.tokenizer)
        wanted = StudentConfig(
            layers=shape.layers, hidden_size=shape.hidden_size, heads=shape.heads, init="random"
        )
        config = student_config(wanted, teacher.model.config, spec.kind, spec.data.classes)
        trusts = spec.teachers[0].trust_remote_code
        model = fresh_student(config, spec.kind, 0, trusts).model
        return cls.ready(spec, model, spec.tokenizer)

    @classmethod
    def ready(
        cls, spec: StageSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> _TimedModel:
        """Return a model on its device, with rows."""
        prepare_model(model, spec, tokenizer)
        device = pick_device(spec.config.parallel.device)
        encoded, collator = spec.encode(spec.data.validation, tokenizer), spec.collator(tokenizer)
        first = range(min(TIMED_ROWS, len(encoded)))
        rows = [collator.collate(encoded, [row], epoch=0).to(device) for row in first]
        return cls(model.eval().to(device), rows)


def _judged(
    shape: Shape, weights: int, milliseconds: float | None, teacher: float, budget: Budget
) -> MeasuredShape:
    slow = "" if milliseconds is None else budget.too_slow(milliseconds, teacher)
    return MeasuredShape(shape, weights, milliseconds, budget.too_large(weights) or slow)


def teacher_quality(spec: StageSpec) -> tuple[float, Metric]:
    """Return the metric of the teacher on validation rows.

    Args:
        spec: The stage that students are to be trained in.
    """
    teacher = spec.teachers[0]
    own = ComparedModel(
        teacher.called,
        teacher.model,
        teacher.tokenizer,
        teacher.trust_remote_code,
        vocabulary=teacher.vocabulary,
    )
    on_validation = replace(spec, data=replace(spec.data, test=None))
    comparison = compare_models(on_validation, [own], own.name)
    metric = spec.metric_on(spec.data.validation)
    return comparison.rows[0].metrics[metric.name], metric
