"""`StudyResults`: what has come of every cell of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from gkd_core.errors import GkdError
from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.outcome import Outcome
from gkd_core.studies.predicted_time import PredictedTime
from gkd_core.studies.study_config import AxisValue, StudyConfig
from gkd_core.studies.study_folder import StudyFolder

Axes: TypeAlias = tuple[tuple[str, AxisValue], ...]
"""Values on some axes, in the order of their names."""


def axes_of(values: Mapping[str, AxisValue]) -> Axes:
    """Return values on axes as something to look up by."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        cell: The cell.
        state: Its state.
        outcome: What its run has found; None unless it is finished or stale.
        failure: Why it failed, or why its outcome cannot be read; empty if neither.
        version: The version of gkd that trained it; empty if it is not known.
        directory: The directory of its run.
    """

    cell: Cell
    state: CellState
    outcome: Outcome | None = None
    failure: str = ""
    version: str = ""
    directory: Path | None = None

    @property
    def axes(self) -> Axes:
        """Its value on each axis but seed and task."""
        return axes_of(self.cell.axes)

    @property
    def why_missing(self) -> str:
        """Why it has no outcome, in a line."""
        last = (self.cell.reason or self.failure).strip().splitlines()[-1:]
        return f"{self.state}: {last[0]}" if last else str(self.state)

    def elsewhere(self, axis: str) -> Axes:
        """Return its values on all axes but one, seed and task."""
        return tuple((name, value) for name, value in self.axes if name != axis)


@dataclass(frozen=True)
class StudyResults:
    """The results of all cells of a study.

    Attributes:
        config: The study.
        cells: Its cells that are reported; those that were dropped are among them.
        tuned: Its cells that served to choose a setting of others.
        time: What cells have taken, and were predicted to take; None if that was not predicted.
    """

    config: StudyConfig
    cells: Sequence[CellResult]
    tuned: Sequence[CellResult] = field(default=())
    time: PredictedTime | None = None

    @classmethod
    def read(cls, folder: StudyFolder, registry: Registry) -> StudyResults:
        """Read the results of a study, whatever of it is there.

        Args:
            folder: Its folder.
            registry: The plugins.
        """
        read = [(cell, _result(folder, cell, registry)) for cell in folder.cells]
        return cls(
            folder.config,
            [result for cell, result in read if cell.role == "report"],
            [result for cell, result in read if cell.role != "report"],
            PredictedTime.of(folder),
        )

    @property
    def axes(self) -> Sequence[str]:
        """The axes on which cells differ, besides seed and task."""
        names = dict.fromkeys(name for result in self.cells for name in result.cell.axes)
        return [name for name in names if len(self.values(name)) > 1]

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks, in order; the settings of a cell that is dropped may name none."""
        named = [result for result in self.cells if result.cell.task] or self.cells
        return list(dict.fromkeys(result.cell.task for result in named))

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds, in order."""
        return sorted({result.cell.seed for result in self.cells})

    def values(self, axis: str) -> Sequence[AxisValue]:
        """Return the values of cells on an axis, in order."""
        found = (each.cell.axes[axis] for each in self.cells if axis in each.cell.axes)
        return list(dict.fromkeys(found))

    def judged(self) -> Iterator[tuple[CellResult, Outcome]]:
        """Yield the cells that have an outcome, with it."""
        for each in self.cells:
            if each.outcome is not None:
                yield each, each.outcome

    def variants(self) -> Mapping[Axes, Sequence[CellResult]]:
        """Return the cells that differ by seed and task only, by what they share; none dropped."""
        found: dict[Axes, list[CellResult]] = {}
        for each in self.without_dropped():
            found.setdefault(each.axes, []).append(each)
        return found

    def without_dropped(self) -> Iterable[CellResult]:
        """Return the cells that were to be trained."""
        return [each for each in self.cells if each.state is not CellState.DROPPED]


def _result(folder: StudyFolder, cell: Cell, registry: Registry) -> CellResult:
    state, directory = folder.state(cell), folder.run_directory(cell)
    if state not in (CellState.FINISHED, CellState.STALE):
        return CellResult(cell, state, failure=folder.failure(cell), directory=directory)
    version = folder.version(cell)
    try:
        outcome = Outcome.read(directory, registry)
    except GkdError as error:
        return CellResult(cell, CellState.FAILED, None, str(error), version, directory)
    return CellResult(cell, state, outcome, "", version, directory)
