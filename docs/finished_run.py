"""What a finished run has measured, for the figures and tables of the documentation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gkd_core.evaluation.predictions import STUDENT, Predictions
from gkd_core.evaluation.statistics import (
    SampleEstimate,
    Statistic,
    bootstrap,
    paired_bootstrap,
)
from gkd_core.training.stage_spec import BASELINE


@dataclass(frozen=True)
class Measured:
    """The models of a run on its test rows.

    Attributes:
        metric: The main metric.
        rows: The row of each model in the table of the run, by the name of its file.
        statistics: The metric of each model for some of the rows; absent if it is no accuracy or
            perplexity.
        count: Number of test rows.
    """

    metric: str
    rows: dict[str, dict[str, Any]]
    statistics: dict[str, Statistic]
    count: int

    @classmethod
    def read(cls, run: Path) -> Measured:
        """Read the directory of a run."""
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        predictions = Predictions.read(run / "predictions")
        files = {name: file for file, name in predictions.names.items()}
        found = {file: _statistic(results["metric"], predictions, file) for file in files.values()}
        return cls(
            results["metric"],
            {files[row["name"]]: row for row in results["rows"]},
            {file: statistic for file, statistic in found.items() if statistic},
            len(predictions.rows),
        )

    @property
    def teachers(self) -> list[str]:
        """The files of the teachers, in the order of the table."""
        return [file for file in self.rows if file not in (STUDENT, BASELINE)]

    def value(self, file: str) -> float:
        """Return the metric of a model."""
        return float(self.rows[file]["metrics"][self.metric])

    def estimate(self, file: str) -> SampleEstimate:
        """Return the metric of a model with its interval."""
        return bootstrap(self.statistics[file], self.count)

    def gain(self) -> SampleEstimate | None:
        """Return what the teacher adds to labels alone; None if there is no interval of it."""
        if not {STUDENT, BASELINE} <= self.statistics.keys():
            return None
        return paired_bootstrap(self.statistics[STUDENT], self.statistics[BASELINE], self.count)


def _statistic(metric: str, predictions: Predictions, file: str) -> Statistic | None:
    table = predictions.models[file]
    if metric == "accuracy":
        right = _numpy(table["prediction"]) == _numpy(predictions.rows["gold"])
        return lambda chosen: float(right[chosen].mean())
    if metric == "perplexity":
        losses, tokens = _numpy(table["nll"]), _numpy(table["tokens"])
        return lambda chosen: float(np.exp(losses[chosen].sum() / tokens[chosen].sum()))
    return None


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()
