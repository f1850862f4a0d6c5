"""`Analysis`: what the probes and predictions of finished runs say, as tables and figures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gkd_core.analysis import figures, probe_figures
from gkd_core.analysis.correlations import (
    ProbeCorrelation,
    correlations_over_runs,
    correlations_within,
)
from gkd_core.analysis.disagreement import Disagreement, disagreements
from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.layer_similarity import LayerSimilarity, layer_similarity
from gkd_core.analysis.page import PageCell, PageLine, PageTable, render
from gkd_core.atomic import write_file
from gkd_core.errors import GkdError
from gkd_core.evaluation.predictions import PREDICTIONS, Predictions
from gkd_core.evaluation.statistics import FEWEST, Correlation
from gkd_core.plugins import Registry
from gkd_core.strict_json import json_text

SHOWN = 20
"""Correlations and rows that the console shows."""

LONGEST = 60
"""Characters of a cell that the console shows."""

MOST_ROWS = 200
"""Rows of a table that a page shows; its CSV file has all."""

CAPTIONS = {
    "distances": "Final distances to the teacher by method, best method first",
    "correlations": "Correlation of each distance with quality",
    "layer-similarity": "Similarity of the layers of student and teacher",
    "losses": "Loss of the last stage",
}
"""Captions of the figures."""

LEADING_NUMBER = re.compile(r"(?:< )?([+-]?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        name: Its name, which is that of its file.
        title: What it shows.
        columns: Headings.
        rows: Cells.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def shown(self) -> Table:
        """Return its first rows for the console."""
        title = self._title(SHOWN)
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in self.rows[:SHOWN]:
            table.add_row(*map(_shortened, row))
        return table

    def on_page(self) -> tuple[str, PageTable]:
        """Return its title and its first rows for a page."""
        shown = self.rows[:MOST_ROWS]
        texts = [n for n in range(len(self.columns)) if n == 0 or _is_text(row[n] for row in shown)]
        rows = [
            PageLine([PageCell(c) if n in texts else _page_cell(c) for n, c in enumerate(row)])
            for row in shown
        ]
        return self._title(MOST_ROWS), PageTable(self.columns, rows, texts)

    def _title(self, most: int) -> str:
        """Return its title, which says whether rows are left out."""
        count = len(self.rows)
        return self.title if count <= most else f"{self.title} (the first {most} of {count:,})"

    def as_csv(self) -> str:
        """Return it as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer).writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def as_markdown(self) -> str:
        """Return it as a table in Markdown."""
        below = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = (self.columns, below, *self.rows)
        return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


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
            {**each.probe._asdict(), **asdict(each), "probe": str("/".join(each.probe))}
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


def _escaped(cell: str) -> str:
    """Return a cell for Markdown, where a bar ends it."""
    return " ".join(cell.replace("|", "\\|").split())


def _shortened(cell: str) -> Text:
    """Return a cell for the console, where brackets are no markup."""
    return Text(cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}…")


def _is_text(cells: Iterable[str]) -> bool:
    """Return whether most cells of a column are not numbers."""
    numbers = [LEADING_NUMBER.match(cell) is not None for cell in cells]
    return sum(numbers) * 2 < len(numbers)


def _page_cell(text: str) -> PageCell:
    """Return a cell for a page, which is sorted by the number at its beginning."""
    number = LEADING_NUMBER.match(text)
    return PageCell(text, None if number is None else float(number[1]))


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
    columns = ("text", *(("gold", "teacher", "student") if predicts else ()), "distance")
    cells = []
    for row in rows:
        pair = "" if row.pair is None else f" | {row.pair}"
        said = map(str, (row.gold, row.teacher, row.student) if predicts else ())
        cells.append((f"{row.text}{pair}", *said, f"{row.distance:.3f}"))
    return Grid("disagreements", title, columns, cells)
