"""`StudentSearch`: looks for the best student within a budget.

Candidates are cells of a study folder of their own, each a run of full length. At each evaluation,
one that is not among the better half of those that came so far is stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.cell_process import CellProcess
from gkd_core.studies.cells import CellMaker, CheckedCell, configs
from gkd_core.studies.design import AxisPoint
from gkd_core.studies.outcome import Outcome
from gkd_core.studies.proposals import Candidate, Proposals, Tried
from gkd_core.studies.search_space import SearchSpace
from gkd_core.studies.study_config import AxisValue
from gkd_core.studies.study_folder import CELLS, StudyFolder
from gkd_core.studies.validation import score

POLL = 0.2

MOST_REPEATED = 20
"""Proposals in a row that are known already, after which nothing new is expected."""

LOST = "stopped at evaluation {number}: {value:.4f}, in the lower half of those so far"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finalist:
    """A candidate that was trained in full.

    Attributes:
        cell: Its cell.
        worth: What it is worth by validation rows; see `SearchSpace.worth`.
        outcome: What its run has found.
    """

    cell: Cell
    worth: float
    outcome: Outcome


class StudentSearch:
    """A search for the best student.

    Args:
        path: The folder of the search.
        space: What candidates may be like.
        registry: The plugins.
        threads: Threads of each candidate.
        say: Tells a person what happens.

    Raises:
        ConfigError: The folder holds a study with other settings, or optuna is not installed.
    """

    def __init__(
        self,
        path: Path,
        space: SearchSpace,
        registry: Registry,
        threads: int,
        say: Say,
    ) -> None:
        self.space = space
        self._registry = registry
        self._threads = threads
        self._say = say
        self._maker = CellMaker(space.study([{}]), registry, ())
        self._proposals = Proposals(space.choices, space.rates, space.metric.higher_is_better, 1)
        self._cells: dict[str, Cell] = {}
        self._path = path
        if (path / CELLS).exists():
            self._recall(StudyFolder.read(path))

    @property
    def folder(self) -> StudyFolder:
        """The folder with the cells so far."""
        cells = list(self._cells.values())
        return StudyFolder(self._path, self.space.study([dict(c.axes) for c in cells]), cells)

    def run(self, until: float) -> None:
        """Try candidates, one at a time.

        Args:
            until: When to begin no other, by `time.monotonic`; one that is running is stopped, to
                be continued by the next search, unless no student is finished yet.
        """
        repeated = 0
        while time.monotonic() < until and repeated < MOST_REPEATED:
            candidate = self._proposals.ask()
            checked = self._made(candidate.axes, self.space.seed)
            if checked.cell.name in self._cells and not self._is_unfinished(checked.cell):
                repeated += 1
                candidate.fail()
                continue
            repeated = 0
            self._try(candidate, checked, until)
        self._finish_one()

    def train(self, axes: Mapping[str, AxisValue], seeds: Sequence[int]) -> list[Cell]:
        """Train the same student with several seeds in full, unless that is done.

        Args:
            axes: Its value on each axis.
            seeds: The seeds.
        """
        cells = []
        for seed in seeds:
            checked = self._made(axes, seed)
            self._cells[checked.cell.name] = checked.cell  # also if it was stopped before
            self.folder.write(configs([checked]))
            if self.folder.state(checked.cell) is not CellState.FINISHED:
                self._say(f"trains {checked.cell.label}")
                self._wait(self._start(checked.cell))
            cells.append(checked.cell)
        return cells

    def finalists(self) -> list[Finalist]:
        """Return the candidates that were trained in full, the best first."""
        found = []
        for cell in self._cells.values():
            if self.folder.state(cell) is CellState.FINISHED and cell.seed == self.space.seed:
                value = self._validation(self.folder, cell)
                outcome = Outcome.read(self.folder.run_directory(cell), self._registry)
                if value is not None:
                    found.append(Finalist(cell, self.space.worth(cell.axes, value), outcome))
        sign = 1 if self.space.metric.higher_is_better else -1
        return sorted(found, key=lambda each: -sign * each.worth)

    def _made(self, axes: Mapping[str, AxisValue], seed: int) -> CheckedCell:
        return self._maker.make(AxisPoint(axes, None, seed))

    def _try(self, candidate: Candidate, checked: CheckedCell, until: float) -> None:
        """Train a candidate until it is finished, falls behind, or time is up."""
        cell = self._cells.setdefault(checked.cell.name, checked.cell)
        self.folder.write(configs([checked]))
        if cell.reason:
            self._say(f"refused  {cell.label}: {cell.reason}")
            candidate.fail()
            return
        running, behind = self._start(cell), ""
        try:
            while not (running.is_over or behind or self._is_late(until)):
                behind = self._falls_behind(candidate, cell)
                time.sleep(POLL)
        finally:
            running.stop()
        self._conclude(candidate, cell, behind)

    def _is_late(self, until: float) -> bool:
        return time.monotonic() > until and self._has_finished()

    def _falls_behind(self, candidate: Candidate, cell: Cell) -> str:
        """Report new evaluations of a candidate; say why it is not to go on, if it is not."""
        values = evaluations(self.folder.run_directory(cell), self.space.metric.name)
        for value in values[len(candidate.evaluations) :]:
            goes_on = candidate.report(value)
            number = len(candidate.evaluations)
            if not goes_on and number < self.space.evaluations:
                return LOST.format(number=number, value=value)
        return ""

    def _conclude(self, candidate: Candidate, cell: Cell, behind: str) -> None:
        state = self.folder.state(cell)
        if behind:
            self._cells[cell.name] = replace(cell, reason=behind)
            candidate.stop()
            self._say(f"stopped  {cell.label}: {behind}")
        elif state is CellState.FINISHED:
            value = self._validation(self.folder, cell)
            if value is None:
                candidate.fail()
            else:
                candidate.finish(self.space.worth(cell.axes, value))
                self._say(f"finished {cell.label}: {self.space.metric.name} {value:.4f}")
        elif state is CellState.FAILED:
            candidate.fail()
            self._say(f"failed   {cell.label}: {self.folder.failure(cell).splitlines()[-1]}")
        self.folder.write({})

    def _finish_one(self) -> None:
        """Go on with the candidate that got furthest, if none is finished."""
        if self._has_finished():
            return
        open_cells = [c for c in self._cells.values() if self._is_unfinished(c)]
        if not open_cells:
            raise ConfigError(
                f"no candidate could be trained; `gkd study status {self._path}` says why"
            )
        metric = self.space.metric.name
        done = {c.name: len(evaluations(self.folder.run_directory(c), metric)) for c in open_cells}
        self._wait(self._start(max(open_cells, key=lambda c: done[c.name])))

    def _start(self, cell: Cell) -> CellProcess:
        return CellProcess.start(self.folder, cell, self._threads)

    def _wait(self, running: CellProcess) -> None:
        try:
            while not running.is_over:
                time.sleep(POLL)
        finally:
            running.stop()

    def _has_finished(self) -> bool:
        folder = self.folder
        return any(folder.state(cell) is CellState.FINISHED for cell in self._cells.values())

    def _is_unfinished(self, cell: Cell) -> bool:
        known = self._cells.get(cell.name, cell)
        return self.folder.state(known) is CellState.WAITING

    def _recall(self, before: StudyFolder) -> None:
        """Take the candidates of an interrupted search into account."""
        if before.config.settings != self.space.study([{}]).settings:
            raise ConfigError(
                f"{before.path} holds a search with other settings; name a new folder with --output"
            )
        self._cells = {cell.name: cell for cell in before.cells}
        for cell in before.cells:
            tried = self._tried(before, cell)
            if tried is not None:
                self._proposals.recall(tried)
            elif before.state(cell) is CellState.WAITING and cell.seed == self.space.seed:
                self._proposals.enqueue(cell.axes)

    def _tried(self, before: StudyFolder, cell: Cell) -> Tried | None:
        if cell.seed != self.space.seed:
            return None
        directory = before.run_directory(cell)
        known = evaluations(directory, self.space.metric.name)
        if before.state(cell) is CellState.FINISHED:
            value = self._validation(before, cell)
            worth = None if value is None else self.space.worth(cell.axes, value)
            return None if worth is None else Tried(cell.axes, known, worth)
        return Tried(cell.axes, known, None) if cell.reason and known else None

    def _validation(self, folder: StudyFolder, cell: Cell) -> float | None:
        """Return the metric of a finished cell on validation rows; None if it has none."""
        found = score(folder, cell, self._registry)
        if found is None or math.isinf(found):
            return None
        return found if self.space.metric.higher_is_better else -found


def evaluations(directory: Path, metric: str) -> list[float]:
    """Return the metric at each evaluation of a run on validation rows, in order of their steps.

    A run that was resumed has repeated some: the last value of a step counts.

    Args:
        directory: The directory of the run, which may be running.
        metric: Name of the metric.
    """
    path = directory / "metrics.jsonl"
    key = f"validation/{metric}"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = _parsed(line)
        if entry.get(key) is not None:
            found[entry["step"]] = float(entry[key])
    return [found[step] for step in sorted(found)]


def _parsed(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # the run is just writing it
        return {}
    return entry if isinstance(entry, dict) else {}
