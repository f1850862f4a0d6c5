"""`StudyReport`: what a study says, as sentences, tables, figures and one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gkd_core.analysis import figures
from gkd_core.analysis.grid import Grid
from gkd_core.analysis.page import render
from gkd_core.atomic import write_file
from gkd_core.plugins import Registry
from gkd_core.strict_json import json_text
from gkd_core.studies.cell import CellState
from gkd_core.studies.choice import Choice, Duel, choose
from gkd_core.studies.comparisons import AxisTable, ComparedValue, Verdict, axis_table
from gkd_core.studies.study_figures import study_figures
from gkd_core.studies.study_results import StudyResults
from gkd_core.studies.study_tables import ABOUT_AXES, interval_text, p_value_text, study_grids
from gkd_core.studies.worst_case import WorstCase, worst_cases

REPORT = "report"
"""Folder of a study with its report."""

PAGE = "study.html"

SHOWN = 10
"""The number of failed comparisons that the sentences name; the JSON file has all."""


@dataclass(frozen=True)
class StudyReport:
    """The results of a study, in words.

    Attributes:
        results: The results of its cells.
        tables: The comparisons by axis.
        choice: What is chosen on validation rows.
        worst: The worst case of each value, by axis, if there are several tasks.
    """

    results: StudyResults
    tables: Sequence[AxisTable]
    choice: Choice
    worst: Mapping[str, Sequence[WorstCase]]

    @classmethod
    def of(cls, results: StudyResults) -> StudyReport:
        """Return the report of results.

        Args:
            results: The results of a study, whatever of it is there.
        """
        tables = [axis_table(results, axis) for axis in results.axes]
        tables = [table for table in tables if table.levels]
        several = tables if len(results.tasks) > 1 else []
        worst = {table.axis: worst_cases(results, table) for table in several}
        return cls(results, tables, choose(results), worst)

    @property
    def title(self) -> str:
        """Its title."""
        return self.results.config.title or "Study"

    def sentences(self) -> Iterator[str]:
        """Yield what is found, said aloud."""
        yield self._progress()
        for table in self.tables:
            yield from _said(table)
            yield from _safest_said(table, self.worst.get(table.axis, ()))
        for duel in self.choice.duels:
            yield _duel_said(duel)
        yield from _combinations_said(self.choice)

    def notes(self) -> Iterator[str]:
        """Yield what limits these findings, and what they have cost."""
        yield from self.choice.notes
        if self.results.time is not None:
            yield str(self.results.time)
        left_out = [
            f"{table.axis}: {name}"
            for table in self.tables
            for level in table.levels
            if level.comparison is not None
            for name in level.comparison.left_out
        ]
        yield from (f"not compared: {name}" for name in left_out[:SHOWN])
        if len(left_out) > SHOWN:
            yield f"not compared: {len(left_out) - SHOWN} more, which report.json names"
        tests = [
            level.comparison.wilcoxon
            for table in self.tables
            for level in table.levels
            if level.comparison is not None
        ]
        if tests and all(test.p is None for test in tests):
            yield f"no Wilcoxon test over seeds: {max(tests, key=lambda test: test.n).reason}"
        if any(d.seeds == 1 for d in self._differences()):
            yield (
                "intervals of one seed are about other rows only; another seed may show the "
                "opposite (name more in axes.seed)"
            )

    def grids(self) -> Iterator[Grid]:
        """Yield its tables."""
        return study_grids(self.results, self.tables, self.worst, self.choice)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "title": self.title,
            "sentences": list(self.sentences()),
            "notes": list(self.notes()),
            "axes": [_axis_json(table) for table in self.tables],
            "worst_cases": {axis: list(map(asdict, cases)) for axis, cases in self.worst.items()},
            "chosen": [
                {
                    "among": each.among,
                    "axes": dict(each.axes),
                    "validation": each.validation,
                    "test": each.test,
                    "cells": [cell.cell.name for cell in each.cells],
                }
                for each in self.choice.chosen
            ],
            "tested": [
                {"chosen": duel.first.label, "against": duel.second, **_comparison_json(duel)}
                for duel in self.choice.duels
            ],
            "cells": list(self._cells_json()),
            "time": None if self.results.time is None else asdict(self.results.time),
        }

    def write(self, folder: Path, registry: Registry) -> Path:
        """Write the page, figures, tables and JSON; return the page.

        Args:
            folder: Where to.
            registry: The plugins.
        """
        folder.mkdir(parents=True, exist_ok=True)
        grids, drawn = list(self.grids()), []
        for each in study_figures(self.results, self.tables, registry):
            write_file(folder / f"{each.name}.png", figures.png(each.figure))
            drawn.append((figures.svg(each.figure), each.caption))
        for grid in grids:
            write_file(folder / f"{grid.name}.csv", grid.as_csv())
        write_file(folder / "report.md", self._markdown(grids))
        write_file(folder / "report.json", json_text(self.to_json(), indent=1))
        page = render(
            "study.html.jinja",
            title=self.title,
            description=self.results.config.description,
            sentences=list(self.sentences()),
            notes=list(self.notes()),
            about=ABOUT_AXES,
            figures=drawn,
            tables=[grid.on_page() for grid in grids],
        )
        write_file(folder / PAGE, page)
        return folder / PAGE

    def _markdown(self, grids: Sequence[Grid]) -> str:
        parts = [f"# {self.title}", self.results.config.description]
        parts.append("\n".join(f"- {sentence}" for sentence in self.sentences()))
        parts += [f"## {grid.title}\n\n{grid.as_markdown()}" for grid in grids]
        parts += [ABOUT_AXES, "\n".join(f"- {note}" for note in self.notes())]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _progress(self) -> str:
        states = [each.state for each in self.results.cells]
        counts = {state: states.count(state) for state in CellState if state in states}
        return f"{len(states)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())

    def _differences(self) -> Iterator[Any]:
        for table in self.tables:
            for level in table.levels:
                if level.comparison is not None and level.comparison.difference is not None:
                    yield level.comparison.difference

    def _cells_json(self) -> Iterator[dict[str, Any]]:
        for each in self.results.cells:
            found = each.outcome
            yield {
                **each.cell.to_json(),
                "state": each.state,
                "failure": each.failure,
                "version": each.version,
                "run": None if each.directory is None else str(each.directory),
                "metric": None if found is None else found.metric.name,
                "test": None if found is None else found.quality,
                "validation": None if found is None else found.validation,
                "milliseconds": None if found is None else found.milliseconds,
                "parameters": None if found is None else found.parameters,
            }


def _said(table: AxisTable) -> Iterator[str]:
    """Yield sentences on the values that are better than the baseline, worse, or tied with it."""
    words = {
        Verdict.BETTER: f"better than {table.baseline}",
        Verdict.WORSE: f"worse than {table.baseline}",
        Verdict.TIED: f"tied with {table.baseline}, so far not told apart",
        Verdict.UNKNOWN: f"not compared with {table.baseline}",
    }
    for verdict, text in words.items():
        names = [str(level.value) for level in table.levels if _verdict(level) is verdict]
        if names:
            yield f"{table.axis}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} {text}"


def _safest_said(table: AxisTable, cases: Sequence[WorstCase]) -> Iterator[str]:
    """Yield a sentence on the value that loses least to the baseline on its worst task."""
    if len(cases) > 1:
        safest = cases[0]
        yield (
            f"{table.axis}: {safest.value} loses least to {table.baseline} in the worst of "
            f"{safest.tasks} tasks: {safest.difference:+.4f} ({interval_text(safest.interval)}) on "
            f"{safest.task}"
        )


def _verdict(level: ComparedValue) -> Verdict | None:
    return None if level.comparison is None else level.comparison.verdict


def _duel_said(duel: Duel) -> str:
    comparison = duel.comparison
    said = f"{duel.first.label}, chosen on validation rows as the best of {duel.first.among}, is "
    if comparison.difference is None:
        return f"{said}not compared with {duel.second}"
    word = "tied with" if comparison.verdict is Verdict.TIED else f"{comparison.verdict} than"
    return (
        f"{said}{word} {duel.second} on the test rows: {comparison.difference.value:+.4f} "
        f"({interval_text(comparison.difference.interval)}; p {p_value_text(comparison.p)})"
    )


def _combinations_said(choice: Choice) -> Iterator[str]:
    """Yield a sentence on whether the chosen combination beats `kd` and the best method."""
    duels = [duel for duel in choice.duels if duel.first.among == "combinations"]
    if duels:
        won = [duel.comparison.verdict is Verdict.BETTER for duel in duels]
        names = " and ".join(duel.second for duel in duels)
        yield f"{duels[0].first.label} {'beats' if all(won) else 'is not shown to beat'} {names}"


def _axis_json(table: AxisTable) -> dict[str, Any]:
    levels = [
        {
            "value": level.value,
            "mean": level.mean,
            "tasks": {task: asdict(spread) for task, spread in level.spreads.items()},
            "comparison": None if level.comparison is None else _comparison_json(level),
        }
        for level in table.levels
    ]
    return {"axis": table.axis, "baseline": table.baseline, "values": levels}


def _comparison_json(of: ComparedValue | Duel) -> Mapping[str, Any]:
    found = of.comparison
    assert found is not None
    return {
        "difference": None if found.difference is None else asdict(found.difference),
        "p": found.p,
        "verdict": found.verdict,
        "mcnemar": [
            {"task": task, "seed": seed, "axes": dict(shared), **asdict(test)}
            for (task, seed, shared), test in found.mcnemar.items()
        ],
        "wilcoxon": asdict(found.wilcoxon),
        "left_out": list(found.left_out),
    }
