"""`Quality`: how good a model is, as its run or the verification of its export has measured it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gkd_core.analysis.finished_run import rows_digest
from gkd_core.analysis.subjects import find_named
from gkd_core.deploy.lineage import LINEAGE
from gkd_core.errors import ConfigError
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.evaluation.statistics import Interval
from gkd_core.runs.run_files import RESULTS

Found = TypeVar("Found")


@dataclass(frozen=True)
class Quality:
    """The quality of a model, as its run or the verification of its export has measured it.

    Attributes:
        metric: Name of the metric.
        value: Its value.
        interval: Its bootstrap interval; None if it is not known.
        rows: Number of rows that it was measured on.
        split: Where they are from: `validation` or `test`.
        rows_digest: A digest of their content; None if it is not known.
    """

    metric: str
    value: float
    interval: Interval | None
    rows: int
    split: str
    rows_digest: str | None

    @property
    def judged_by(self) -> tuple[str, int, str, str | None]:
        """The metric and the rows, which qualities that may be compared have in common."""
        return self.metric, self.rows, self.split, self.rows_digest

    def __str__(self) -> str:
        """Return the value with its interval."""
        within = "" if self.interval is None else f" ({self.interval:.4f})"
        return f"{self.value:.4f}{within}"


def qualities(names: Sequence[str]) -> dict[str, Quality | None]:
    """Return the quality of models, as their run, or the verification of their export, has it.

    Args:
        names: Directories of the models.
    """
    known: dict[Path, Quality] = {}
    for run in {found.run for found in map(find_named, names) if found.run is not None}:
        if (run / RESULTS).is_file():
            known |= _read(run / RESULTS, partial(_of_run, run))
    found = {name: known.get(Path(name).resolve()) for name in names}
    for name in names:
        if (Path(name) / LINEAGE).is_file():
            found[name] = _read(Path(name) / LINEAGE, _of_export)
    return found


def _read(file: Path, quality: Callable[[Mapping[str, Any]], Found]) -> Found:
    """Return the quality that a file tells.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        return quality(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is damaged ({type(error).__name__}: {error}). Move it away to measure without "
            "the quality that it tells, or make it again"
        ) from error


def _of_run(run: Path, results: Mapping[str, Any]) -> dict[Path, Quality]:
    """Return the quality of the models of a run, by their places."""
    return dict(_qualities(run, results))


def _qualities(run: Path, results: Mapping[str, Any]) -> Iterator[tuple[Path, Quality]]:
    metric, judged = results["metric"], (results["samples"], results["split"], rows_digest(run))
    for row in results["rows"]:
        value = row["metrics"].get(metric)
        if value is not None:
            quality = Quality(metric, value, _interval(row), *judged)
            yield Path(row["model"]).resolve(), quality
            if row is results["rows"][-1]:
                # The paths in the results begin where the run was started.
                yield (run / STUDENT).resolve(), quality


def _of_export(known: Mapping[str, Any]) -> Quality:
    """Return the quality of an export from its lineage."""
    found = known["verification"]
    return Quality(
        found["metric"],
        found["after"],
        _interval(found["estimate"]),
        found["rows"],
        found["split"],
        found.get("rows_digest"),  # version 0.2 wrote none
    )


def _interval(estimate: Mapping[str, Any] | None) -> Interval | None:
    """Return the interval of what was measured, if it is known."""
    found = None if estimate is None else estimate.get("interval")
    return None if found is None else Interval(**found)
