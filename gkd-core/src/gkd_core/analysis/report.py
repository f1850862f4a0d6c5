"""`report.html`: a finished run on one self-contained page."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.analysis import figures
from gkd_core.analysis.comparison import Comparison
from gkd_core.atomic import write_file
from gkd_core.tracking.recorder import METRICS

if TYPE_CHECKING:
    from gkd_core.runs.result import StageResult
    from gkd_core.runs.run import Run
    from gkd_core.training.stage_spec import StageSpec

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 60rem;
       margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } th, td { padding: .35rem .9rem; text-align: right }
th { border-bottom: 2px solid #1f2937; font-weight: 600 } td { border-bottom: 1px solid #e5e7eb }
th:first-child, td:first-child { text-align: left } tr:last-child td { font-weight: 600 }
.stages th, .stages td { text-align: left; padding: .35rem .6rem; font-size: .9rem }
figure { display: inline-block; margin: 0 1rem 1rem 0 } img { max-width: 29rem; width: 100% }
figcaption, .note { color: #6b7280; font-size: .9rem }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""


def write_report(
    run: Run,
    comparison: Comparison | None,
    outline: str,
    extra: Sequence[Path],
    failures: Sequence[str],
) -> Path:
    """Write the report of a run.

    Args:
        run: The finished run.
        comparison: The comparison of its models, if there is one.
        outline: The outline of the run, as `gkd explain` prints it.
        extra: Files that plugins add, to be linked.
        failures: What plugins failed to do for the report.
    """
    lines = (run.directory / METRICS).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    method = escape(run.methods)
    parts = [
        f"<h1>{method} on {escape(run.last.data.source)}</h1>",
        f"<p class=note>{escape(_summary(run))}</p>",
        *(f"<p><strong>{escape(failed)}</strong></p>" for failed in failures),
        *_compared(comparison),
        "<h2>Stages</h2>",
        _stages(run),
        *_differences(run),
        "<h2>Training</h2>",
        _figure(figures.validation(entries, run.last.metric.name), "on the validation rows"),
        *(_figure(png, f"losses of stage {s}") for s, png in figures.losses(entries).items()),
        f"<h2>What was computed</h2><pre>{escape(outline)}</pre>",
        f"<h2>Configuration</h2><pre>{escape((run.directory / 'config.toml').read_text())}</pre>",
        *_links(extra),
    ]
    path = run.directory / "report.html"
    write_file(path, _page(run.methods, parts))
    return path


def _summary(run: Run) -> str:
    count = len(run.results)
    seconds = sum(result.seconds for result in run.results.values() if not result.reused)
    return (
        f"Seed {run.resolved.config.seed}. {count} {'stage' if count == 1 else 'stages'}, trained "
        f"in {seconds:.0f} s."
    )


STAGE_COLUMNS = ("stage", "methods", "taught by", "goes on with", "best", "steps", "time", "key")


def _stages(run: Run) -> str:
    """Return the table of the stages, in order."""
    head = "".join(f"<th>{name}</th>" for name in STAGE_COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(spec, result)) + "</tr>"
        for spec, result in zip(run.specs, run.results.values(), strict=True)
    )
    return f"<table class=stages><tr>{head}</tr>{rows}</table>"


def _cells(spec: StageSpec, result: StageResult) -> Iterator[str]:
    yield spec.name
    yield str(spec.expression)
    yield ", ".join(spec.taught_by)
    yield spec.follows.name if spec.follows else ""
    yield "" if result.best is None else f"{result.metric} {result.best:.4f}"
    yield str(result.steps)
    yield f"from {result.reused}" if result.reused else f"{result.seconds:.0f} s"
    yield "" if result.fingerprint is None else str(result.fingerprint)


def _differences(run: Run) -> Iterator[str]:
    """Yield what was not as before when the run was resumed, stage by stage."""
    for name, result in run.results.items():
        for difference in result.differences:
            yield f"<p class=note>stage {escape(name)} was resumed: {escape(str(difference))}</p>"


def _page(title: str, parts: Iterable[str]) -> str:
    head = f"<meta charset=utf-8><title>gkd: {escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _compared(comparison: Comparison | None) -> Iterator[str]:
    if comparison is not None:
        yield _table(comparison)
        yield "<h2>Quality over size</h2>"
        yield _figure(figures.quality_over_size(comparison), "area: time for one sample")


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in comparison.columns())
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in comparison.cells()
    )
    note = f"{comparison.title()}; {comparison.legend()}"
    return f"<table><tr>{head}</tr>{rows}</table><p class=note>{escape(note)}</p>"


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _links(files: Sequence[Path]) -> Iterable[str]:
    if files:
        yield "<h2>From plugins</h2><ul>"
        yield from (f"<li><a href='{escape(str(f))}'>{escape(f.name)}</a></li>" for f in files)
        yield "</ul>"
