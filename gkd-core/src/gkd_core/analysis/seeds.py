"""`SeedSummary`: one run with several seeds, side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gkd_core.analysis.judged_rows import judge_rows, task_of
from gkd_core.analysis.verdict import GAIN, Lead
from gkd_core.contract.run_info import STAGES
from gkd_core.evaluation.predictions import PREDICTIONS, Predictions
from gkd_core.evaluation.seed_statistics import SeedDifference, SeedPair, seed_difference
from gkd_core.evaluation.statistics import SampleEstimate
from gkd_core.runs.run_files import DONE
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.plugins import Registry


@dataclass(frozen=True)
class SeedSummary:
    """Finished runs that differ in their seed only.

    Attributes:
        runs: The runs, in the order of their seeds.
    """

    runs: Sequence[FinishedRun]

    @functools.cached_property
    def values(self) -> Mapping[str, Sequence[float]]:
        """The main metric of each model in every run, by its name in the table."""
        first = self.runs[0]
        found: dict[str, list[float]] = {row["name"]: [] for row in first.results["rows"]}
        for run in self.runs:
            for row in run.results["rows"]:
                found[row["name"]].append(row["metrics"][first.metric])
        return found

    def table(self) -> Table:
        """Return the mean and the standard deviation of each model, and its value of each seed."""
        first, seeds = self.runs[0], [run.resolved.config.seed for run in self.runs]
        title = f"{first.metric} on {first.results['samples']:,} {first.results['split']} rows"
        table = Table(
            title=f"{title}, {len(seeds)} seeds",
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        table.add_column("model", overflow="fold")
        for name in ("mean", "sd", *(f"seed {seed}" for seed in seeds)):
            table.add_column(name, justify="right", no_wrap=True)
        for name, values in self.values.items():
            figures = (np.mean(values), np.std(values, ddof=1), *values)
            table.add_row(name, *(f"{value:.4f}" for value in figures))
        return table

    def verdict(self, registry: Registry) -> str | None:
        """Return whether distillation is better than labels alone; None without a baseline.

        Args:
            registry: The plugins.
        """
        first = self.runs[0]
        if not (first.directory / STAGES / BASELINE / DONE).exists():
            return None
        up = first.results.get("higher_is_better", True)
        where = (
            f"{first.results['samples']:,} {first.results['split']} rows, {len(self.runs)} seeds"
        )
        lead = Lead(first.metric, up, where, self._gain(registry))
        return f"{GAIN[lead.sign]}: {lead}"

    def _gain(self, registry: Registry) -> SeedDifference | SampleEstimate:
        """Return the student minus the baseline.

        It has no interval if a run does not say how good they are on a part of the rows.
        """
        pairs = [pair for run in self.runs if (pair := _pair(run, registry)) is not None]
        if len(pairs) == len(self.runs):
            return seed_difference({self.runs[0].metric: [pairs]})
        *_, baseline, student = map(np.mean, self.values.values())
        return SampleEstimate(float(student - baseline), None, len(self.runs))


def _pair(run: FinishedRun, registry: Registry) -> SeedPair | None:
    """Return the student and the baseline of a run on its rows; None if they are not known."""
    if not (run.directory / PREDICTIONS).exists():
        return None
    predictions = Predictions.read(run.directory / PREDICTIONS)
    kind = registry.kind(predictions.about.kind)
    task = task_of(run, kind, registry)
    *_, baseline, student = (row["metrics"][run.metric] for row in run.results["rows"])
    mine = judge_rows(predictions, kind, task, student)
    theirs = judge_rows(predictions, kind, task, baseline, BASELINE)
    if mine is None or theirs is None:
        return None
    every = np.arange(len(mine.units))
    seed = run.resolved.config.seed
    return SeedPair(seed, mine.units, mine.metric(every), theirs.metric(every))
