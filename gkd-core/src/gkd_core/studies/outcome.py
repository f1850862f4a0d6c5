"""`Outcome`: what the run of a cell has found its student to be worth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.judged_rows import JudgedRows, judge_rows, task_of
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import DataError
from gkd_core.evaluation.predictions import PREDICTIONS, STUDENT, Predictions
from gkd_core.kinds.metrics import Metric
from gkd_core.plugins import Registry
from gkd_core.runs.result import StageResult
from gkd_core.runs.run_files import DONE, RESULTS
from gkd_core.training.stage_spec import BASELINE


@dataclass(frozen=True)
class Outcome:
    """The quality of a cell's student, as measured by its run.

    Attributes:
        metric: The main metric.
        split: The rows that the student was judged on: `test`, or `validation` without test rows.
        quality: The metric of the student on these rows.
        validation: Its best value on the validation rows; None if it was never evaluated there.
        rows: The rows, to compare students on; None if the metric cannot be computed for a part
            of them.
        milliseconds: Median time of the student for one sample; None if it was not measured.
        parameters: Number of weights of the student.
        bytes: Size of its saved weights.
        layers: Number of its blocks; None if it is not known.
        teacher: The metric of the teacher on the same rows; None without a teacher.
        teacher_milliseconds: Median time of the teacher for one sample, in the same minutes.
        rates: The learning rate of each stage.
    """

    metric: Metric
    split: str
    quality: float
    validation: float | None = None
    rows: JudgedRows | None = None
    milliseconds: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    layers: int | None = None
    teacher: float | None = None
    teacher_milliseconds: float | None = None
    rates: tuple[float, ...] = ()

    @classmethod
    def read(cls, directory: Path, registry: Registry) -> Outcome:
        """Read the outcome of a finished run.

        Args:
            directory: Its directory.
            registry: The plugins.

        Raises:
            GkdError: Its files cannot be read, or a plugin that it needs is missing.
        """
        run = FinishedRun.read(directory, registry)
        try:
            predictions = Predictions.read(directory / PREDICTIONS)
            *others, student = run.results["rows"]
            return cls._of(run, predictions, student, others, registry)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory / RESULTS} cannot be read ({error!r}); remove {directory} and run the "
                "study again"
            ) from error

    @classmethod
    def _of(
        cls,
        run: FinishedRun,
        predictions: Predictions,
        student: Mapping[str, Any],
        others: list[Mapping[str, Any]],
        registry: Registry,
    ) -> Outcome:
        kind = registry.kind(predictions.about.kind)
        task = task_of(run, kind, registry)
        teachers = {
            name for file, name in predictions.names.items() if file not in (STUDENT, BASELINE)
        }
        teacher = next((row for row in others if row["name"] in teachers), None)
        known = (each for each in (task.metric, kind.metric) if each and each.name == run.metric)
        return cls(
            metric=next(known, Metric(run.metric, higher_is_better=True)),
            split=str(run.results["split"]),
            quality=run.quality,
            validation=_validation(run),
            rows=judge_rows(predictions, kind, task, run.quality),
            milliseconds=student["milliseconds"],
            parameters=student["parameters"],
            bytes=student["bytes"],
            layers=_layers(run.directory / STUDENT),
            teacher=None if teacher is None else teacher["metrics"][run.metric],
            teacher_milliseconds=None if teacher is None else teacher["milliseconds"],
            rates=tuple(stage.config.training.lr for stage in run.resolved.stages),
        )


def _validation(run: FinishedRun) -> float | None:
    """Return the best value of the last stage on the validation rows."""
    path = run.directory / STAGES / run.stage / DONE
    if not path.exists():
        return None
    best = StageResult.load(path).best
    return None if best is None or math.isnan(best) else best


def _layers(student: Path) -> int | None:
    """Return the number of blocks of a saved student."""
    try:
        config = json.loads((student / "config.json").read_text())
    except (OSError, ValueError):  # studies may delete students
        return None
    count = config.get("num_hidden_layers", config.get("n_layer"))
    return count if isinstance(count, int) else None
