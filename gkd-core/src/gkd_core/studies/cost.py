"""The cost of a study's cells: time, memory and disk, from short runs on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.contract.run_info import STAGES
from gkd_core.plugins import Registry
from gkd_core.runs.result import StageResult
from gkd_core.runs.run_files import DONE, METRICS
from gkd_core.studies.cell import Cell
from gkd_core.studies.cells import total_steps
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.training.stage_spec import StageSpec

STUDENT = "student"


@dataclass(frozen=True)
class StageTiming:
    """The cost of a stage.

    Attributes:
        step: Seconds of a step.
        evaluation: Seconds of an evaluation, with the checkpoint that follows it.
    """

    step: float
    evaluation: float

    def seconds(self, spec: StageSpec, share: float) -> float:
        """Return the duration of a stage that is trained for a share of its steps."""
        steps = math.ceil(total_steps(spec) * share)
        training = spec.config.training
        every = training.evaluate_every or -(-len(spec.data.train) // training.batch_size)
        return steps * self.step + max(1, steps // every) * self.evaluation


@dataclass(frozen=True)
class Cost:
    """The cost of a cell.

    Attributes:
        fixed: Seconds before and after its stages: imports, loading, the report.
        stages: What each stage costs, by name.
        memory: Bytes of memory at most.
        disk: Bytes on the disk, without the student.
        student: Bytes of the student.
        gpu: Share of a GPU at most; 0 without one.
        comparison: Seconds that evaluating its models takes at the end, on all rows.
    """

    fixed: float
    stages: Mapping[str, StageTiming]
    memory: int
    disk: int
    student: int
    gpu: float = 0.0
    comparison: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cost:
        """Return the cost that `to_json` returned."""
        stages = {name: StageTiming(**each) for name, each in content["stages"].items()}
        return cls(**{**content, "stages": stages})

    def seconds(self, specs: Sequence[StageSpec]) -> float:
        """Return the duration of a cell.

        Args:
            specs: Its stages.
        """
        return self._trained(specs, 1.0) + self.comparison

    def trial_seconds(self, specs: Sequence[StageSpec], share: float) -> float:
        """Return the duration of a trial, whose models are compared on validation rows.

        Args:
            specs: The stages of a cell.
            share: The share of the steps that it is trained for.
        """
        row = self.comparison / len(specs[-1].judged[1])
        return self._trained(specs, share) + row * len(specs[-1].data.validation)

    def _trained(self, specs: Sequence[StageSpec], share: float) -> float:
        trained = (self.stages[spec.name].seconds(spec, share) for spec in specs)
        return self.fixed + sum(trained)


def read_cost(folder: StudyFolder, cell: Cell, registry: Registry) -> Cost:
    """Return the cost of a finished short run.

    Args:
        folder: The folder of short runs.
        cell: The short run.
        registry: The plugins.
    """
    attempt = folder.attempt(cell)
    assert attempt is not None, "a finished cell was started"
    run = FinishedRun.read(folder.run_directory(cell), registry)
    lines = (run.directory / METRICS).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    stages = {}
    for stage in run.resolved.stages:
        speeds = [e["samples_per_second"] for e in entries if _is_step(e, stage.name)]
        steps = [stage.config.training.batch_size / speed for speed in speeds]
        seconds = StageResult.load(run.directory / STAGES / stage.name / DONE).seconds
        stages[stage.name] = StageTiming(median(steps[1:]), max(0.0, seconds - sum(steps)))
    student = _bytes(run.directory / STUDENT)
    compared = sum(model["seconds"] for model in run.results["rows"])
    fixed = max(0.0, attempt.seconds - _trained(run.directory) - compared)
    disk = _bytes(run.directory) - student
    return Cost(fixed, stages, attempt.memory, disk, student, attempt.gpu, compared)


def _trained(directory: Path) -> float:
    """Return the seconds that a run has trained, a teacher for other runs included."""
    results = [StageResult.load(path) for path in (directory / STAGES).glob(f"*/{DONE}")]
    return sum(result.seconds for result in results if not result.reused)


def _is_step(entry: Mapping[str, object], stage: str) -> bool:
    return entry["stage"] == stage and "samples_per_second" in entry


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
