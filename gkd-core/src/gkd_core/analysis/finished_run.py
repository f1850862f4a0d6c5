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
from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.probes.probe_file import PROBES, ProbedValue, read_probes
from gkd_core.runs.directory import CONFIG
from gkd_core.tracking.recorder import METRICS

RESULTS = "results.json"


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
        """
        for name in (CONFIG, RESULTS):
            if not (directory / name).exists():
                raise ConfigError(
                    f"{directory} is not the directory of a finished run: it has no {name}. Name "
                    f"another, or finish it (gkd run --resume --output {directory})"
                )
        results = json.loads((directory / RESULTS).read_text())
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
        """What `metrics.jsonl` has of the last stage: steps and evaluations."""
        lines = (self.directory / METRICS).read_text().splitlines()
        every = [json.loads(line) for line in lines]
        return [entry for entry in every if entry["stage"] == self.stage]

    @property
    def evaluations(self) -> Sequence[tuple[int, float]]:
        """The step and the metric of each evaluation on the validation rows."""
        key = f"validation/{self.metric}"
        return [(e["step"], e[key]) for e in self.entries if e.get(key) is not None]
