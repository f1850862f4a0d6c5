"""`SearchResult`: the student that a search has found, what was tried, and why it lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gkd_core.analysis import figures
from gkd_core.analysis.grid import Grid
from gkd_core.analysis.page import render
from gkd_core.atomic import write_file
from gkd_core.plugins import Registry
from gkd_core.runs.default_method import LABELS
from gkd_core.strict_json import json_text
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.comparisons import SeedComparison, Verdict, compare, spread
from gkd_core.studies.search import Finalist, StudentSearch, was_stopped
from gkd_core.studies.search_space import SHAPE
from gkd_core.studies.shapes import MeasuredShape
from gkd_core.studies.study_config import METHOD, AxisValue
from gkd_core.studies.study_figures import pareto
from gkd_core.studies.study_results import CellResult, StudyResults
from gkd_core.studies.study_tables import NONE, interval_text, p_value_text

PAGE = "search.html"


@dataclass(frozen=True)
class SearchResult:
    """The student that a search has found, what was tried, and why it lost.

    Attributes:
        search: The search.
        finalists: The candidates that were trained in full, the best first.
        students: The best one, with each seed that it was trained with.
        distilled: The best candidate while candidates were tried.
        against_labels: That one against a student of the same shape that learned from labels
            alone; None if it did so itself.
        before: Latency of the teacher, and the costs of the shapes, before the first candidate.
        after: Latency of the teacher, and the costs of the best student, at the end.
    """

    search: StudentSearch
    finalists: Sequence[Finalist]
    students: Sequence[CellResult]
    distilled: Cell
    against_labels: SeedComparison | None
    before: tuple[float, Sequence[MeasuredShape]]
    after: tuple[float, MeasuredShape]

    @classmethod
    def of(
        cls,
        search: StudentSearch,
        seeds: Sequence[int],
        registry: Registry,
        before: tuple[float, Sequence[MeasuredShape]],
        after: tuple[float, MeasuredShape],
    ) -> SearchResult:
        """Train the best candidate with all seeds, and on labels alone, and compare.

        Which of the two is the result is decided on validation rows, the comparison is made on
        test rows.

        Args:
            search: The search, of which a candidate is finished.
            seeds: The seeds.
            registry: The plugins.
            before: Costs before the first candidate.
            after: Costs at the end.
        """
        finalists = search.finalists()
        axes = finalists[0].cell.axes
        own = search.train(axes, seeds)
        plain = search.train(_on_labels(finalists), seeds)
        known = {each.cell.name: each for each in StudyResults.read(search.folder, registry).cells}
        students, others = ([known[cell.name] for cell in cells] for cells in (own, plain))
        comparison = None if axes[METHOD] == LABELS else compare(students, others, {})
        if _is_better(search, plain, own):
            students, finalists = others, _led_by(search, plain[0], finalists)
        return cls(search, finalists, students, own[0], comparison, before, after)

    @property
    def directory(self) -> Path:
        """The directory of the student."""
        return self.search.student(self.finalists[0].cell)

    def sentences(self) -> Iterator[str]:
        """Yield what was found, said aloud."""
        best, (teacher, shape) = self.finalists[0], self.after
        found = spread(self.students)
        deviation = "" if found.deviation is None else f" ± {found.deviation:.4f}"
        outcome = best.outcome
        yield f"best: {best.cell.label}"
        yield (
            f"{outcome.metric.name} {found.mean or 0.0:.4f}{deviation} on {outcome.split} rows, "
            f"{found.n} seed{'' if found.n == 1 else 's'}"
            + ("" if outcome.teacher is None else f"; teacher {outcome.teacher:.4f}")
        )
        first = next(each for each in self.before[1] if each.shape == shape.shape)
        yield (
            f"{shape.milliseconds or 0.0:.2f} ms for one sample (teacher {teacher:.2f}); before "
            f"the search {first.milliseconds or 0.0:.2f} ms (teacher {self.before[0]:.2f}); "
            f"{shape.weights / 1e6:.3g} M weights, {4 * shape.weights / 1e6:.1f} MB"
        )
        if shape.reason:
            slower = "; the machine was slower" if teacher > self.before[0] else ""
            yield f"at the end it misses the budget: {shape.reason}{slower}"
        yield self._distillation_said()

    def grids(self) -> Iterator[Grid]:
        """Yield its tables."""
        yield self._tried()
        rows = [
            (
                str(each.shape),
                f"{each.weights / 1e6:.3g} M",
                NONE if each.milliseconds is None else f"{each.milliseconds:.2f}",
                each.reason or "within the budget",
            )
            for each in self.before[1]
        ]
        columns = ("blocks x width", "weights", "ms", "")
        yield Grid("shapes", "Shapes, before anything was trained", columns, rows)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        best = self.finalists[0].cell
        return {
            "student": str(self.directory),
            "axes": dict(best.axes),
            "sentences": list(self.sentences()),
            "shapes": [asdict(each) for each in self.before[1]],
            "teacher_milliseconds": [self.before[0], self.after[0]],
            "milliseconds_at_end": self.after[1].milliseconds,
            "against_labels": None
            if self.against_labels is None
            else {
                "verdict": self.against_labels.verdict,
                "difference": self.against_labels.difference
                and asdict(self.against_labels.difference),
            },
            "tried": [dict(zip(self._tried().columns, r, strict=True)) for r in self._tried().rows],
        }

    def write(self, folder: Path) -> Path:
        """Write page, tables and JSON; return the page.

        Args:
            folder: Where to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for grid in self.grids():
            write_file(folder / f"{grid.name}.csv", grid.as_csv())
        write_file(folder / "search.json", json_text(self.to_json(), indent=1))
        drawn = self._pareto()
        (folder / "pareto.png").write_bytes(figures.png(drawn))
        caption = "Candidates trained in full; the line joins those that no other beats"
        page = render(
            "study.html.jinja",
            title=self.search.folder.config.title,
            description="",
            sentences=list(self.sentences()),
            notes=[],
            about="",
            figures=[(figures.svg(drawn), caption)],
            tables=[grid.on_page() for grid in self.grids()],
        )
        write_file(folder / PAGE, page)
        return folder / PAGE

    def _distillation_said(self) -> str:
        """Return a sentence on whether distillation pays."""
        found = self.against_labels
        if found is None:
            return "labels alone are as good: no method that was tried is better on validation rows"
        if found.difference is None:
            return "not compared with labels alone: " + "; ".join(found.left_out)
        words = {
            Verdict.BETTER: "distillation pays: better than labels alone",
            Verdict.WORSE: "distillation does not pay: worse than labels alone",
            Verdict.TIED: "labels alone are as good, as far as can be told",
        }
        which = (
            ""
            if self.distilled == self.finalists[0].cell
            else f"labels alone are better on validation rows than {self.distilled.label}; on the "
            "others, "
        )
        return (
            f"{which}{words.get(found.verdict, str(found.verdict))}: {found.difference.value:+.4f} "
            f"({interval_text(found.difference.interval)}; p {p_value_text(found.p)}), "
            f"{found.difference.seeds} seed{'' if found.difference.seeds == 1 else 's'}"
        )

    def _tried(self) -> Grid:
        finished = {each.cell.name: each for each in self.search.finalists()}
        best = self.finalists[0]
        folder = self.search.folder
        columns = (*best.cell.axes, "state", "validation", "ms", "")
        rows = []
        for cell in folder.cells:
            if cell.seed == self.search.space.seed:
                own = finished.get(cell.name)
                if own is None and self._is_plain(cell):
                    own = self.search.finalist(cell)
                rows.append([*_shown(cell), *self._came_to(cell, own, best)])
        return Grid("tried", "What was tried, and why it lost", columns, rows)

    def _is_plain(self, cell: Cell) -> bool:
        """Return whether a cell is the best shape on labels alone, which may be no candidate."""
        shape = self.finalists[0].cell.axes[SHAPE]
        return (cell.axes[SHAPE], cell.axes[METHOD]) == (shape, LABELS)

    def _came_to(self, cell: Cell, own: Finalist | None, best: Finalist) -> list[str]:
        state = self.search.folder.state(cell)
        if own is None:
            failure = self.search.folder.failure(cell).strip().splitlines()[-1:]
            if cell.reason:
                said = "stopped" if was_stopped(cell) else "refused"
                return [said, NONE, NONE, cell.reason]
            over = state is CellState.FINISHED
            why = "no candidate of this search" if over else "not finished in time"
            return [str(state), NONE, NONE, failure[0] if failure else why]
        time = own.outcome.milliseconds
        value = own.outcome.validation or 0.0
        behind = f"{abs(best.worth - own.worth):.4f} behind the best"
        if all(own.cell != each.cell for each in self.finalists):
            behind = "labels alone, to compare the best with"
        return [
            str(state),
            f"{value:.4f}",
            NONE if time is None else f"{time:.2f}",
            "the best" if own.cell == best.cell else behind,
        ]

    def _pareto(self) -> Any:
        points: Mapping[str, tuple[float, float]] = {
            f"{each.cell.axes[SHAPE]} {each.cell.axes[METHOD]}": (
                each.outcome.milliseconds or 0.0,
                each.outcome.quality,
            )
            for each in reversed(self.finalists)
        }
        rising = self.search.space.metric.higher_is_better
        outcome = self.finalists[0].outcome
        teacher = None
        if outcome.teacher is not None and outcome.teacher_milliseconds is not None:
            teacher = outcome.teacher_milliseconds, outcome.teacher
        return pareto(points, rising, teacher)


def _on_labels(finalists: Sequence[Finalist]) -> Mapping[str, AxisValue]:
    """Return the student of the best one's shape that learns from labels alone.

    It is the best of those that were tried, or else the same with another method.
    """
    best = finalists[0].cell.axes
    tried = (each.cell.axes for each in finalists)
    plain = (axes for axes in tried if (axes[SHAPE], axes[METHOD]) == (best[SHAPE], LABELS))
    return next(plain, {**best, METHOD: LABELS})


def _is_better(search: StudentSearch, cells: Sequence[Cell], than: Sequence[Cell]) -> bool:
    """Return whether students are worth more than others on the mean, by validation rows."""
    worths = [
        [each.worth for cell in group if (each := search.finalist(cell))] for group in (cells, than)
    ]
    if not all(worths):
        return False
    mine, theirs = map(fmean, worths)
    return mine > theirs if search.space.metric.higher_is_better else mine < theirs


def _led_by(search: StudentSearch, cell: Cell, finalists: Sequence[Finalist]) -> list[Finalist]:
    first = search.finalist(cell)
    return ([first] if first else []) + [each for each in finalists if each.cell != cell]


def _shown(cell: Cell) -> list[str]:
    values = cell.axes.values()
    return [f"{value:.2e}" if isinstance(value, float) else str(value) for value in values]
