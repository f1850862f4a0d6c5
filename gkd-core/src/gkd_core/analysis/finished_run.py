"""`FinishedRun`: what a run has left in its directory, for analyses of one or several runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_core.config.resolve import Resolved, resolve
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError, DataError
from gkd_core.evaluation.predictions import PREDICTIONS, ROWS, ModelPredictions, digest_of_rows
from gkd_core.plugins import Registry
from gkd_core.probes.probe_file import PROBES, ProbedValue, read_probes
from gkd_core.runs.run_files import CONFIG, METRICS, RESULTS

NEEDED = {"metric", "split", "samples", "rows"}
"""The keys that the results of every run have."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        directory: Its directory.
        resolved: Its configuration.
        results: The comparison of its models, as in `results.json`.
    """

    directory: Path
    resolved: Resolved
    results: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path, registry: Registry) -> FinishedRun:
        """Read a run.

        Args:
            directory: Its directory.
            registry: The plugins.

        Raises:
            ConfigError: There is no finished run.
            DataError: Its results are damaged.
        """
        if not directory.exists():
            raise ConfigError(f"there is no run {directory}: the directory does not exist")
        for name in (CONFIG, RESULTS):
            if not (directory / name).exists():
                raise ConfigError(
                    f"{directory} is not the directory of a finished run: it has no {name}. Name "
                    f"another, or finish it (gkd run --resume --output {directory})"
                )
        (results,) = _read_json(directory / RESULTS, [(directory / RESULTS).read_text()])
        if not isinstance(results, dict) or not results.keys() >= NEEDED:
            raise _damaged(directory / RESULTS, f"it lacks one of {', '.join(sorted(NEEDED))}")
        return cls(directory, resolve(registry, files=[directory / CONFIG]), results)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.directory.resolve().name

    @property
    def method(self) -> str:
        """The methods of its stages, as in `distilbert then hard`."""
        return " then ".join(stage.config.method for stage in self.resolved.stages)

    @property
    def stage(self) -> str:
        """The name of its last stage."""
        return self.resolved.stages[-1].name

    @property
    def judged_by(self) -> str:
        """The metric of its models and the rows that they were judged on."""
        return f"{self.metric} on {self.results['samples']} {self.results['split']} rows"

    @property
    def metric(self) -> str:
        """The main metric of its models."""
        return str(self.results["metric"])

    @property
    def quality(self) -> float:
        """The metric of the final student; NaN if it has none."""
        student = self.results["rows"][-1]
        value = student["metrics"][self.metric]
        return float("nan") if value is None else float(value)

    @functools.cached_property
    def probes(self) -> Sequence[ProbedValue]:
        """The values of the probes of the last stage; empty without probes."""
        path = self.directory / STAGES / self.stage / PROBES
        return read_probes(path) if path.exists() else ()

    @functools.cached_property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """What `metrics.jsonl` has of the last stage: steps and evaluations.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self.directory / METRICS
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise _damaged(path, error.strerror or "it cannot be read") from error
        every = _read_json(path, lines)
        return [entry for entry in every if entry.get("stage") == self.stage]

    @functools.cached_property
    def rows_digest(self) -> str | None:
        """A digest of the content of the rows that its models were judged on; None if unknown."""
        return rows_digest(self.directory)

    @property
    def evaluations(self) -> Sequence[tuple[int, float]]:
        """The step and the metric of each evaluation on the validation rows."""
        key = f"validation/{self.metric}"
        return [(e["step"], e[key]) for e in self.entries if e.get(key) is not None]


def rows_digest(run: Path) -> str | None:
    """Return a digest of the content of the rows of a run's predictions; None if it has none.

    Args:
        run: Its directory.
    """
    path = run / PREDICTIONS / f"{ROWS}.parquet"
    if not path.exists():
        return None
    return digest_of_rows(ModelPredictions.read(path).table["hash"].to_pylist())


def _read_json(path: Path, texts: Sequence[str]) -> list[Any]:
    try:
        return [json.loads(text) for text in texts]
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Name another run")
