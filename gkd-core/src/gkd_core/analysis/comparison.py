"""The comparison of teacher, plain student and distilled student, as it is shown and saved."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gkd_core.analysis.sizes import readable
from gkd_core.atomic import write_file
from gkd_core.evaluation.pairs import ModelPair, compare_pair, row_difference, row_estimate
from gkd_core.evaluation.predictions import STUDENT, Predictions
from gkd_core.evaluation.statistics import RESAMPLES, Interval, SampleEstimate, Statistic
from gkd_core.strict_json import json_text

if TYPE_CHECKING:
    from gkd_core.analysis.layer_similarity import LayerSimilarity
    from gkd_core.kinds.task_kind import TaskKind

NONE = "-"
WIDTH, GAP = 80, 3
"""Characters in a line of the table, and between its columns."""

BREAKABLE = re.compile(r"[^ +]*[ +]|[^ +]+")


@dataclass(frozen=True)
class Row:
    """One model in the comparison.

    Attributes:
        name: Its name in the table.
        model: Directory or hub id.
        metrics: Metrics on the test rows (the validation rows if there are none).
        parameters: Number of weights; tied ones count once.
        bytes: Size of the saved weights on disk.
        milliseconds: Median time for one sample; None if several processes share a model.
        kept: Share of the (first) teacher's quality; None without a teacher.
        agreement: Share of the rows on which it predicts the teacher's class; None if undefined.
        flops: Floating-point operations for one sample, the mean of some; None if not counted.
        tokens: Tokens of one of these samples, the mean.
        interval: Bootstrap interval of the main metric; None if it is not known.
        seconds: Duration of its evaluation on all rows.
    """

    name: str
    model: str
    metrics: Mapping[str, float]
    parameters: int
    bytes: int
    milliseconds: float | None
    kept: float | None
    agreement: float | None
    flops: float | None = None
    tokens: float | None = None
    interval: Interval | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """All models on the same rows.

    Attributes:
        metric: Name of the main metric; `agreement` if the rows have no labels.
        split: `test` or `validation`.
        samples: Number of rows.
        rows: The models; a teacher comes first.
        guessed: Share of the most frequent class, the accuracy of always predicting it; None
            without classes.
        judged_by: What takes the place of labels, if the rows have none.
        cut: How many texts were too long for a model, and at what length they were cut; empty if
            none was.
        judge: What the model is with which the others are compared.
        higher_is_better: Whether larger values of the main metric are better.
    """

    metric: str
    split: str
    samples: int
    rows: Sequence[Row]
    guessed: float | None = None
    judged_by: str | None = None
    cut: str = ""
    judge: str = "teacher"
    higher_is_better: bool = True

    def save(self, path: Path) -> None:
        """Write the comparison as JSON."""
        write_file(path, json_text(asdict(self), indent=1))

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None)
        with console.capture() as printed:
            console.print(self.table())
        return printed.get().rstrip()

    def table(self) -> Table:
        """Return the comparison as a table with one row per model, 80 columns wide."""
        table = Table(
            title=self.title(),
            title_justify="left",
            title_style="bold",
            caption=self.legend(),
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        model, *figures = self.columns()
        table.add_column(model, overflow="fold")
        for figure in figures:
            table.add_column(figure, justify="right", no_wrap=True)
        rows = list(self.cells())
        widths = [
            max(map(len, column))
            for column in zip(figures, *(row[1:] for row in rows), strict=True)
        ]
        room = WIDTH - sum(width + GAP for width in widths)
        for name, *cells in rows:
            table.add_row(_folded(name, room), *cells)
        return table

    def title(self) -> str:
        """Return the title: what was measured, on how many rows."""
        without = "" if self.judged_by is None else ", which have no labels"
        return f"{self.metric} on {self.samples:,} {self.split} rows{without}"

    def legend(self) -> str:
        """Return the meaning of the column headings."""
        meanings = {
            "kept": f"share of the {self.judge}'s quality",
            "agrees": f"share of the rows with the {self.judge}'s answer",
            "ms": "median time for one sample",
        }
        if self.judged_by is not None:
            meanings = {self.metric: self.judged_by} | meanings
        if self.guessed:
            meanings = {self.metric: f"{self.guessed:.4f} by the most frequent class"} | meanings
        shown = self.columns()
        said = [f"{name}: {words}" for name, words in meanings.items() if name in shown]
        return "; ".join([*said, *filter(None, [self.cut])])

    def columns(self) -> list[str]:
        """Return the column headings."""
        return [column.name for column in self._columns()]

    def cells(self) -> Iterator[list[str]]:
        """Yield the cells of each row."""
        columns = self._columns()
        return ([column.show(row) for column in columns] for row in self.rows)

    def values(self) -> Iterator[list[str | float | None]]:
        """Yield the values of each row by which the cells of a column are ordered."""
        columns = self._columns()
        return ([column.value(row) for column in columns] for row in self.rows)

    def _columns(self) -> list[_Column]:
        """Return the columns; empty ones are left out."""
        columns = [
            _Column("model", lambda row: row.name, str),
            _Column(self.metric, lambda row: row.metrics[self.metric], lambda v: f"{v:.4f}"),
            _Column("kept", lambda row: row.kept, lambda v: f"{v:.1%}"),
            _Column("agrees", lambda row: row.agreement, lambda v: f"{v:.1%}"),
            _Column("weights", lambda row: row.parameters, _count),
            _Column("disk", lambda row: row.bytes, readable),
            _Column("ms", lambda row: row.milliseconds, lambda v: f"{v:.2f}"),
        ]
        return [c for c in columns if any(c.value(row) is not None for row in self.rows)]


@dataclass(frozen=True)
class _Column:
    """A column of the comparison.

    Attributes:
        name: Its heading.
        value: Returns the value of a model; None if there is none.
        shown: Formats a value.
    """

    name: str
    value: Callable[[Row], str | float | None]
    shown: Callable[[Any], str]

    def show(self, row: Row) -> str:
        """Return the cell of a model."""
        value = self.value(row)
        return NONE if value is None else self.shown(value)


@dataclass(frozen=True)
class Compared:
    """A comparison with what it was made from.

    Attributes:
        comparison: The comparison.
        predictions: What each model says of each row.
        measures: The main metric of each model for some of the rows, by the name of its file; a
            model is missing if it cannot be computed for a part of them.
        kind: The kind of task.
        layers: Similarity of the layers of student and teacher; None unless it was asked for and
            is defined.
    """

    comparison: Comparison
    predictions: Predictions
    measures: Mapping[str, Statistic]
    kind: TaskKind
    layers: LayerSimilarity | None = None

    @functools.cached_property
    def pairs(self) -> Mapping[str, ModelPair]:
        """The student of a run against every other model, by the name of its file."""
        others = [file for file in self.predictions.models if file != STUDENT]
        return {
            file: compare_pair(
                self.predictions, (STUDENT, file), self.kind, self._both(STUDENT, file), RESAMPLES
            )
            for file in others
        }

    def difference(self, first: str, second: str) -> SampleEstimate | None:
        """Return the main metric of a model minus that of another; None if it is not known.

        Args:
            first: The name of the file of the one.
            second: That of the other.
        """
        if first == STUDENT and second in self.pairs:
            return self.pairs[second].difference
        return row_difference(self._both(first, second), self.predictions.rows, RESAMPLES)

    def with_intervals(self) -> Comparison:
        """Return the comparison with the interval of each model's main metric."""
        rows = zip(self.predictions.models, self.comparison.rows, strict=True)
        judged = [replace(row, interval=self._interval(file)) for file, row in rows]
        return replace(self.comparison, rows=judged)

    def _interval(self, file: str) -> Interval | None:
        measure = self.measures.get(file)
        return None if measure is None else row_estimate(measure, self.predictions.rows).interval

    def _both(self, first: str, second: str) -> tuple[Statistic, Statistic] | None:
        known = first in self.measures and second in self.measures
        return (self.measures[first], self.measures[second]) if known else None


def _folded(name: str, width: int) -> str:
    """Break a long name at spaces and after `+`, never within a word."""
    lines = [""]
    for piece in BREAKABLE.findall(name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _count(number: int) -> str:
    """Return a number with three significant digits and its unit, such as `4.39 M`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {unit}"
    return str(number)
