"""The table and plot of a run with `autodisc`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.api import curves, write_file
from gkd_methods_multiteacher.autodisc.lifecycle import CANDIDATES

if TYPE_CHECKING:
    from gkd_core.api import RunInfo


def write_report(run: RunInfo) -> list[Path]:
    """Write a table and a plot for each stage with candidates, and return the files."""
    return [path for name in run.results for path in _write(run, name)]


def _write(run: RunInfo, stage: str) -> Iterator[Path]:
    found = run.stage_directory(stage) / CANDIDATES
    if not found.exists():
        return
    told = json.loads(found.read_text())
    students = _students(run, stage)
    name = f"autodisc-{stage}"
    for ending, content in (
        ("txt", _table(told, students, _compute(run))),
        ("png", _plot(told, students)),
    ):
        path = run.directory / f"{name}.{ending}"
        write_file(path, content)
        yield path


def _students(run: RunInfo, stage: str) -> list[float]:
    """Return the metric of each student distilled from a stage's assistant."""
    taught = [learner.name for learner in run.outline.stages if stage in learner.taught_by]
    results = [run.results[name] for name in taught if name in run.results]
    return [each.best for each in results if each.steps and each.best is not None]


def _compute(run: RunInfo) -> str:
    spent = [f"{result.name} {result.seconds:.0f} s" for result in run.results.values()]
    total = sum(result.seconds for result in run.results.values())
    return f"{', '.join(spent)}; {total:.0f} s in all"


def _table(told: Mapping[str, Any], students: Sequence[float], compute: str) -> str:
    metric = told["metric"]
    header = ["scale", "parameters", f"assistant {metric}", "trade-off", f"student {metric}"]
    rows = [header]
    for candidate in told["candidates"]:
        chosen = candidate["scale"] == told["selected"]
        rows.append(
            [
                f"{candidate['scale']:g}{' *' if chosen else '  '}",
                f"{candidate['parameters']:,}",
                f"{candidate['metric']:.4f}",
                f"{candidate['trade_off']:.4f}",
                ", ".join(f"{student:.4f}" for student in students) if chosen else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [
        "",
        f"* the assistant: the best of performance + {told['lambda']:g} * (1 - scale)",
        f"student: scale {told['target']:g}; {len(students)} of them distilled",
        f"time: {compute}",
    ]
    return "\n".join(lines) + "\n"


def _plot(told: Mapping[str, Any], students: Sequence[float]) -> bytes:
    candidates = told["candidates"]
    series = {
        "assistant": [(c["scale"], c["metric"]) for c in candidates],
        "trade-off": [(c["scale"], c["trade_off"]) for c in candidates],
    }
    if students:
        series["student"] = [(told["selected"], student) for student in students]
    return curves("scale of the assistant", told["metric"], series)
