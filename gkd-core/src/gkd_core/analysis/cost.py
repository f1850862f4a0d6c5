"""The cost of the stages of a run: rows, tokens, arithmetic, and how much of the device it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gkd_core.runs.training_cost import TRAINED, training_rows

if TYPE_CHECKING:
    from gkd_core.analysis.comparison import Comparison, Row
    from gkd_core.runs.result import StageResult
    from gkd_core.runs.run import Run
    from gkd_core.training.stage_spec import StageSpec

PEAKS: Mapping[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
}
"""Floating-point operations per second of devices: in 16 bits on tensor cores, and in fp32.

From the makers' data sheets (SXM versions, without sparsity).
"""


@dataclass(frozen=True)
class StageCost:
    """The time and memory of a stage.

    Attributes:
        stage: Its name.
        rows: Rows that the student learned from, each as often as it came.
        tokens: Tokens that the student read, estimated from test rows; None if these were not
            counted.
        student: Floating-point operations of the student, estimated likewise.
        teachers: Floating-point operations of the teachers; 0 without any.
        peak_share: Share of what the devices could have computed; None if their peak is not known.
    """

    stage: str
    rows: int
    tokens: float | None
    student: float | None
    teachers: float | None
    peak_share: float | None


def stage_costs(run: Run, comparison: Comparison) -> list[StageCost]:
    """Return the cost of every stage that the run trained itself.

    Args:
        run: The finished run.
        comparison: The comparison of its models, whose arithmetic was counted on test rows.
    """
    rows = {row.name: row for row in comparison.rows}
    pairs = zip(run.specs, run.results.values(), strict=True)
    return [
        _cost(spec, result, _compared_like(spec, run, comparison.rows[-1], rows), rows)
        for spec, result in pairs
        if not result.reused
    ]


def _compared_like(spec: StageSpec, run: Run, student: Row, rows: Mapping[str, Row]) -> Row | None:
    """Return a compared model of the shape that a stage trained; None if there is none.

    It is the student of the run, or the teacher that the stage made.
    """
    if spec.student == run.last.student:
        return student
    made = (
        teacher.called
        for teacher in run.teachers
        if teacher.called == spec.name or (spec.store and teacher.store == spec.store)
    )
    return rows.get(next(made, ""))


def _cost(
    spec: StageSpec, result: StageResult, student: Row | None, rows: Mapping[str, Row]
) -> StageCost:
    seen = result.steps * spec.config.training.batch_size
    if student is None or student.flops is None or student.tokens is None:
        return StageCost(spec.name, seen, None, None, None, None)
    mine = TRAINED * student.flops * seen
    theirs = _of_teachers(spec, result.kept, rows, seen)
    peak = _peak(spec)
    share = None
    if peak is not None and theirs is not None and result.seconds > 0:
        share = (mine + theirs) / (result.seconds * peak)
    return StageCost(spec.name, seen, student.tokens * seen, mine, theirs, share)


def _of_teachers(
    spec: StageSpec, kept: Sequence[str], rows: Mapping[str, Row], seen: int
) -> float | None:
    """Return the arithmetic of the teachers' forward passes; None if one was not counted.

    A teacher whose answers are kept (`teacher.keep`) is asked about each training row once.
    """
    total = 0.0
    for teacher in spec.live_teachers:
        row = rows.get(teacher.called)
        if row is None or row.flops is None:
            return None
        read = training_rows(spec) if teacher.info.name in kept else seen
        total += row.flops * read
    return total


def _peak(spec: StageSpec) -> float | None:
    """Return the operations per second of all devices of a stage, if they are known."""
    device = _device(spec)
    number = 1 if spec.config.training.precision == "fp32" else 0
    peaks = (peak[number] for name, peak in PEAKS.items() if device is not None and name in device)
    peak = next(peaks, None)
    return None if peak is None else peak * spec.layout.world


def _device(spec: StageSpec) -> str | None:
    """Return the manufacturer's name for the device of a stage; None for CPUs."""
    if spec.config.parallel.device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()
