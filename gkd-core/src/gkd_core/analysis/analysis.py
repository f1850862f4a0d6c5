"""`Analysis`: what the probes and predictions of finished runs say, as tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gkd_core.analysis import figures, probe_figures
from gkd_core.analysis.correlations import (
    ProbeCorrelation,
    correlations_over_runs,
    correlations_within,
)
from gkd_core.analysis.disagreement import Disagreement, disagreements
from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.grid import Grid
from gkd_core.analysis.layer_similarity import LayerSimilarity, layer_similarity
from gkd_core.analysis.page import render
from gkd_core.atomic import write_file
from gkd_core.errors import GkdError
from gkd_core.evaluation.predictions import PREDICTIONS, Predictions
from gkd_core.evaluation.statistics import FEWEST, Correlation
from gkd_core.plugins import Registry
from gkd_core.strict_json import json_text

CAPTIONS = {
    "distances": "Final distances to the teacher by method, best method first",
    "correlations": "Correlation of each distance with quality",
    "layer-similarity": "Similarity of the layers of student and teacher",
    "losses": "Loss of the last stage",
}
"""Captions of the figures."""


@dataclass(frozen=True)
class Analysis:
    """An analysis of one run, or of several.

    Attributes:
        runs: The runs.
        correlations: How probes go with quality: over the runs, or within a single one.
        similarity: Similarity of the layers of student and teacher, of a single run.
        rows: The test rows, sorted by how much student and teacher disagree, of a single run.
        notes: What there is not, with the reason.
    """

    runs: Sequence[FinishedRun]
    correlations: Sequence[ProbeCorrelation]
    similarity: LayerSimilarity | None
    rows: Sequence[Disagreement]
    notes: Sequence[str]

    @property
    def scope(self) -> str:
        """The meaning of a point in the correlations."""
        if len(self.runs) == 1:
            return "changes between evaluations within one run"
        return f"final distance and {self.runs[0].judged_by}, a run each"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        runs = [
            {
                "run": str(run.directory),
                "method": run.method,
                "seed": run.resolved.config.seed,
                "metric": run.metric,
                "quality": run.quality,
            }
            for run in self.runs
        ]
        correlations = [
            {**each.probe._asdict(), **asdict(each), "probe": "/".join(each.probe)}
            for each in self.correlations
        ]
        return {
            "runs": runs,
            "points": self.scope,
            "correlations": correlations,
            "layer_similarity": None if self.similarity is None else asdict(self.similarity),
            "disagreements": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def grids(self) -> Iterator[Grid]:
        """Yield its tables."""
        yield self._runs()
        shown = [each for each in self.correlations if each.spearman.value is not None]
        if shown:
            yield _correlation_grid(f"Correlation with quality: {self.scope}", shown)
        if self.similarity is not None:
            yield _layer_grid(self.similarity)
        if self.rows:
            yield _row_grid(self.rows)

    def figures(self) -> Mapping[str, Figure]:
        """Return its figures, by the names of their files."""
        found = {}
        if len(self.runs) > 1 and any(run.probes for run in self.runs):
            found["distances"] = probe_figures.distances_by_method(self.runs)
        if any(each.spearman.value is not None for each in self.correlations):
            found["correlations"] = probe_figures.correlations_by_feature(self.correlations)
        if self.similarity is not None:
            found["layer-similarity"] = probe_figures.layers(self.similarity)
        found["losses"] = probe_figures.loss_curves(self.runs)
        return found

    def _runs(self) -> Grid:
        columns = ("run", "method", "seed", self.runs[0].metric)
        ranked = sorted(self.runs, key=lambda run: -run.quality)
        rows = [
            (run.name, run.method, str(run.resolved.config.seed), f"{run.quality:.4f}")
            for run in ranked
        ]
        return Grid("runs", f"Students, {self.runs[0].judged_by}", columns, rows)


def analyze(runs: Sequence[FinishedRun], registry: Registry) -> Analysis:
    """Analyze runs: one by itself, or what several have in common.

    Args:
        runs: The runs, at least one.
        registry: The plugins.

    Raises:
        DataError: Several runs are judged by different metrics or rows.
    """
    notes = [f"{run.name} has no probes (gkd run --probe all)" for run in runs if not run.probes]
    if len(runs) > 1:
        found = correlations_over_runs(runs)
        return Analysis(
            runs, found, None, (), [*notes, *_unsaid(found, "run with probes", "runs with probes")]
        )
    (run,) = runs
    found = correlations_within(run)
    notes += _unsaid(found, "change between evaluations", "changes between evaluations")
    similarity: LayerSimilarity | None = None
    rows: Sequence[Disagreement] = ()
    try:
        similarity = layer_similarity(run, registry)
    except GkdError as error:
        notes.append(f"no similarity of layers: {error}")
    try:
        rows = _rows(run, registry)
    except GkdError as error:
        notes.append(f"no rows sorted by disagreement: {error}")
    return Analysis(runs, found, similarity, rows, notes)


def _rows(run: FinishedRun, registry: Registry) -> Sequence[Disagreement]:
    """Return the test rows of a run, sorted by how much student and teacher disagree."""
    predictions = Predictions.read(run.directory / PREDICTIONS)
    return disagreements(predictions, registry.kind(predictions.about.kind))


def write_analysis(analysis: Analysis, folder: Path) -> Path:
    """Write an analysis as a page, figures, tables and JSON; return the page.

    Args:
        analysis: The analysis.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = analysis.figures()
    for name, figure in drawn.items():
        (folder / f"{name}.png").write_bytes(figures.png(figure))
    for grid in analysis.grids():
        write_file(folder / f"{grid.name}.csv", grid.as_csv())
    write_file(folder / "analysis.json", json_text(analysis.to_json(), indent=1))
    path = folder / "analysis.html"
    write_file(path, _page(analysis, drawn))
    return path


def _page(analysis: Analysis, drawn: Mapping[str, Figure]) -> str:
    """Return the page of an analysis with its figures."""
    methods = ", ".join(dict.fromkeys(run.method for run in analysis.runs))
    return render(
        "analysis.html.jinja",
        title=f"Analysis of {methods}",
        notes=analysis.notes,
        figures=[(figures.svg(figure), CAPTIONS[name]) for name, figure in drawn.items()],
        tables=[grid.on_page() for grid in analysis.grids()],
    )


def _unsaid(found: Sequence[ProbeCorrelation], one: str, several: str) -> list[str]:
    """Explain why no correlation is shown, given the names of one point and of several."""
    if not found or any(each.spearman.value is not None for each in found):
        return []
    most = max((each.spearman for each in found), key=lambda each: each.n)
    few = f"{most.n} {one if most.n == 1 else several}, and below {FEWEST} it says nothing"
    return [f"no correlation is shown: {few if most.n < FEWEST else most.reason}"]


def _correlation_grid(title: str, found: Sequence[ProbeCorrelation]) -> Grid:
    several = len({each.probe.teacher for each in found}) > 1
    columns = ("feature", "distance", "spearman, 95%", "pearson, 95%", "n")
    rows = []
    for each in found:
        teacher = f"{each.probe.teacher} " if several else ""
        both = _cell(each.spearman), _cell(each.pearson)
        name = teacher + each.probe.feature
        rows.append((name, each.probe.distance, *both, str(each.spearman.n)))
    return Grid("correlations", title, columns, rows)


def _cell(found: Correlation) -> str:
    if found.value is None:
        return found.reason
    interval = found.interval
    span = "" if interval is None else f" [{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"{found.value:+.2f}{span}"


def _layer_grid(similarity: LayerSimilarity) -> Grid:
    columns = ("student", *(str(layer) for layer in range(len(similarity.values[0]))))
    rows = [
        (str(layer), *(f"{value:.3f}" for value in values))
        for layer, values in enumerate(similarity.values)
    ]
    return Grid("layer-similarity", similarity.title, columns, rows)


def _row_grid(rows: Sequence[Disagreement]) -> Grid:
    predicts = any(row.teacher is not None for row in rows)  # language models give no answer
    title = "Rows by disagreement, the distance of the answers"
    if predicts:
        differ = sum(row.student != row.teacher for row in rows)
        title += f"; student and teacher differ on {differ} of {len(rows)}"
    answers = ("gold", "teacher", "student") if predicts else ()
    cells = []
    for row in rows:
        pair = "" if row.pair is None else f" | {row.pair}"
        said = (_answer(getattr(row, name)) for name in answers)
        cells.append((f"{row.text}{pair}", *said, f"{row.distance:.3f}"))
    return Grid("disagreements", title, ("text", *answers, "distance"), cells, narrow=answers)


def _answer(value: Any) -> str:
    """Return an answer as text: of several, one after the other; nothing if it is not known."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
