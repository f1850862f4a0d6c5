"""`StudentSearch`: looks for the best student within a budget.

Candidates are cells of a study folder of their own, each a run of full length. At a rung, one that
is not among the better half of those that came so far is stopped. It goes on where it was stopped
once it is: all that the search knows is in the runs.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.runs.run_files import METRICS
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.cell_process import CellProcess
from gkd_core.studies.cells import CellMaker, CheckedCell, configs
from gkd_core.studies.cost import STUDENT
from gkd_core.studies.design import AxisPoint
from gkd_core.studies.outcome import Outcome
from gkd_core.studies.proposals import Proposals, Tried
from gkd_core.studies.rungs import Rungs
from gkd_core.studies.search_space import SearchSpace
from gkd_core.studies.shapes import Shape
from gkd_core.studies.study_config import AxisValue
from gkd_core.studies.study_folder import CELLS, StudyFolder
from gkd_core.studies.validation import score

POLL = 0.2

MOST_FRUITLESS = 20
"""Proposals in a row that are known already, refused or fail, after which no other is expected."""

REASONS_SHOWN = 3
"""Reasons that are named if no candidate could be trained, the most frequent ones."""

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
        missed: Returns why the student in a directory, which was to be of a shape, misses the
            budget; an empty string if it does not.

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
        missed: Callable[[Shape, Path], str],
    ) -> None:
        self.space = space
        self._registry = registry
        self._threads = threads
        self._say = say
        self._missed = missed
        self._empty = StudyFolder(path, space.study([]), ())
        self._maker = CellMaker(self._empty.config, registry, ())
        rising = space.metric.higher_is_better
        self._proposals = Proposals(space.choices, space.rates, rising)
        self._rungs = Rungs(space.evaluations, rising)
        self._cells: dict[str, Cell] = {}
        self._validations: dict[str, float | None] = {}
        if (path / CELLS).exists():
            self._recall(StudyFolder.read(path))

    @property
    def folder(self) -> StudyFolder:
        """The folder with the cells so far."""
        cells = list(self._cells.values())
        config = self.space.study([dict(cell.axes) for cell in cells])
        return replace(self._empty, config=config, cells=cells)

    def run(self, until: float) -> None:
        """Try candidates, one at a time.

        Args:
            until: When to begin no other, by `time.monotonic`; one that is running is stopped, to
                be continued by the next search, unless no student is finished yet.
        """
        self._judge_again()
        fruitless = 0
        while time.monotonic() < until and fruitless < MOST_FRUITLESS:
            checked = self._next(fruitless)
            has_learned = checked is not None and self._try(checked, until)
            fruitless = 0 if has_learned else fruitless + 1
        self._finish_one()

    def train(self, axes: Mapping[str, AxisValue], seeds: Sequence[int]) -> list[Cell]:
        """Train the same student with several seeds in full, unless that is done, or refused.

        Args:
            axes: Its value on each axis.
            seeds: The seeds.
        """
        cells = []
        for seed in seeds:
            checked = self._made(axes, seed)
            self._cells[checked.cell.name] = checked.cell  # also if it was stopped before
            self.folder.write_configs(configs([checked]))
            self.folder.write()
            state = self._empty.state(checked.cell)
            if state is CellState.DROPPED:
                self._say(f"refused  {checked.cell.label}: {checked.cell.reason}")
            elif state is not CellState.FINISHED:
                self._say(f"trains {checked.cell.label}")
                self._wait(self._start(checked.cell))
            cells.append(checked.cell)
        return cells

    def finalists(self) -> list[Finalist]:
        """Return the candidates that were trained in full, the best first."""
        found = [self.finalist(cell) for cell in self._own_cells()]
        sign = 1 if self.space.metric.higher_is_better else -1
        return sorted((each for each in found if each), key=lambda each: -sign * each.worth)

    def finalist(self, cell: Cell) -> Finalist | None:
        """Return the quality of a fully trained student; None for others.

        Args:
            cell: Its cell.
        """
        if self._empty.state(cell) is not CellState.FINISHED:
            return None
        value = self._validation(cell)
        if value is None:
            return None
        outcome = Outcome.read(self._empty.run_directory(cell), self._registry)
        return Finalist(cell, self.space.worth(cell.axes, value), outcome)

    def student(self, cell: Cell) -> Path:
        """Return the directory of a candidate's student."""
        return self._empty.run_directory(cell) / STUDENT

    def _made(self, axes: Mapping[str, AxisValue], seed: int) -> CheckedCell:
        return self._maker.make(AxisPoint(axes, None, seed))

    def _next(self, fruitless: int) -> CheckedCell | None:
        """Return a candidate to go on with, or a new one; None if it is known already.

        Args:
            fruitless: How many proposals in a row nothing was learned from.
        """
        begun = [*self._unfinished(), *self._promoted()]
        if begun:
            return self._made(begun[0].axes, begun[0].seed)
        known = [cell.axes for cell in self._own_cells()]
        first = [axes for axes in self.space.beginnings if axes not in known]
        checked = self._made(first[0] if first else self._proposed(fruitless), self.space.seed)
        return None if checked.cell.name in self._cells else checked

    def _proposed(self, fruitless: int) -> Mapping[str, AxisValue]:
        tried = [each for cell in self._own_cells() if (each := self._tried(cell)) is not None]
        return self._proposals.propose(tried, seed=len(self._cells) + fruitless)

    def _own_cells(self) -> list[Cell]:
        """Return the candidates so far, as far as they can still occur."""
        cells = self._cells.values()
        candidates = [cell for cell in cells if cell.seed == self.space.seed]
        return [cell for cell in candidates if self._proposals.can_occur(cell.axes)]

    def _unfinished(self) -> list[Cell]:
        """Return the candidates that were interrupted."""
        return [cell for cell in self._own_cells() if self._empty.state(cell) is CellState.WAITING]

    def _promoted(self) -> Iterator[Cell]:
        """Yield the candidates that were stopped and are now good enough to go on."""
        known = {cell.name: self._evaluations(cell) for cell in self._own_cells()}
        for cell in self._own_cells():
            own = known[cell.name]
            others = [values for name, values in known.items() if name != cell.name]
            if was_stopped(cell) and own and self._rungs.stopped_at(own, others) is None:
                yield cell

    def _evaluations(self, cell: Cell) -> list[float]:
        directory, stage = self._empty.run_directory(cell), self.space.stage(cell.axes)
        return evaluations(directory, stage, self.space.metric.name)

    def _try(self, checked: CheckedCell, until: float) -> bool:
        """Train a candidate until it is finished, falls behind, or time is up.

        Returns:
            Whether that says anything of its quality: it is neither refused nor has it failed.
        """
        cell = checked.cell
        self._cells[cell.name] = cell  # without the reason for which it was stopped
        self.folder.write_configs(configs([checked]))
        self.folder.write()
        if cell.reason:
            self._say(f"refused  {cell.label}: {cell.reason}")
            return False
        others = [self._evaluations(c) for c in self._own_cells() if c.name != cell.name]
        self._say(f"trains   {cell.label}")
        running, behind = self._start(cell), ""
        try:
            while not (behind or running.is_over or self._is_late(until)):
                behind = self._falls_behind(cell, others)
                time.sleep(POLL)
        finally:
            running.stop()
        self._conclude(cell, behind)
        state = self._empty.state(self._cells[cell.name])
        return bool(behind) or state not in (CellState.DROPPED, CellState.FAILED)

    def _is_late(self, until: float) -> bool:
        return time.monotonic() > until and self._has_finished()

    def _falls_behind(self, cell: Cell, others: Sequence[Sequence[float]]) -> str:
        """Return the reason that a candidate is not to go on; empty if it is."""
        values = self._evaluations(cell)
        number = self._rungs.stopped_at(values, others)
        return "" if number is None else LOST.format(number=number, value=values[number - 1])

    def _conclude(self, cell: Cell, behind: str) -> None:
        """Say how a candidate came out, and note why it was stopped, if it was."""
        state = self._empty.state(cell)
        if state is CellState.FINISHED:
            self._conclude_finished(cell)
        elif state is CellState.FAILED:
            self._say(f"failed   {cell.label}: {self._empty.failure(cell).splitlines()[-1]}")
        elif behind:
            self._cells[cell.name] = replace(cell, reason=behind)
            self._say(f"stopped  {cell.label}: {behind}")
        self.folder.write()

    def _conclude_finished(self, cell: Cell) -> None:
        """Say what a candidate is worth, unless its student misses the budget."""
        judged = self._cells[cell.name] = self._judged(cell)
        if judged.reason:
            self._say(f"refused  {cell.label}: {judged.reason}")
        elif (value := self._validation(cell)) is not None:
            self._say(f"finished {cell.label}: {self.space.metric.name} {value:.4f}")

    def _judged(self, cell: Cell) -> Cell:
        """Return a trained candidate, with a reason if it is a slice that misses the budget."""
        shape = self.space.shape(cell.axes).shape
        missed = "" if shape.scale is None else self._missed(shape, self.student(cell))
        return replace(cell, reason=f"its student has {missed}" if missed else "")

    def _judge_again(self) -> None:
        """Judge trained slices by the budget as it is now.

        One may have been finished by its process when that of the search was killed already.
        """
        for cell in self._own_cells():
            if self._empty.is_over(cell) and self._judged(cell) != cell:
                self._conclude_finished(cell)
                self.folder.write()

    def _finish_one(self) -> None:
        """Go on with the candidate that got furthest, while none is finished."""
        while not self._has_finished():
            open_cells = self._unfinished()
            if not open_cells:
                raise ConfigError(f"no candidate could be trained: {self._why_none()}")
            furthest = max(open_cells, key=lambda cell: len(self._evaluations(cell)))
            self._wait(self._start(furthest))
            self._conclude(furthest, "")

    def _why_none(self) -> str:
        """Return why candidates were refused or have failed, the most frequent reasons."""
        cells = self._own_cells()
        if not cells:
            return "there was no time for one; a longer --time gives it"
        failures = {c.name: self._empty.failure(c).strip().splitlines()[-1:] for c in cells}
        reasons = Counter(c.reason or "".join(failures[c.name]) for c in cells)
        said = [f"{n} of {len(cells)}: {why}" for why, n in reasons.most_common(REASONS_SHOWN)]
        return f"{'; '.join(said)}. `gkd study status {self._empty.path}` shows all"

    def _start(self, cell: Cell) -> CellProcess:
        return CellProcess.start(self.folder, cell, self._threads)

    def _wait(self, running: CellProcess) -> None:
        try:
            while not running.is_over:
                time.sleep(POLL)
        finally:
            running.stop()

    def _has_finished(self) -> bool:
        return any(self._empty.state(cell) is CellState.FINISHED for cell in self._own_cells())

    def _recall(self, before: StudyFolder) -> None:
        """Take the candidates of an interrupted search into account."""
        if before.config.settings != self._empty.config.settings:
            raise ConfigError(
                f"{before.path} holds a search with other settings; name a new folder with --output"
            )
        self._cells = {cell.name: cell for cell in before.cells}

    def _tried(self, cell: Cell) -> Tried | None:
        """Return the result of a candidate; None if it failed or was rejected."""
        known = self._evaluations(cell)
        if self._empty.state(cell) is CellState.FINISHED:
            value = self._validation(cell)
            worth = None if value is None else self.space.worth(cell.axes, value)
            return None if worth is None else Tried(cell.axes, known, worth)
        return Tried(cell.axes, known, None) if was_stopped(cell) and known else None

    def _validation(self, cell: Cell) -> float | None:
        """Return the metric of a finished cell on validation rows; None if it has none."""
        if cell.name not in self._validations:
            found = score(self._empty, cell, self._registry)
            sign = 1 if self.space.metric.higher_is_better else -1
            known = None if found is None or math.isinf(found) else sign * found
            self._validations[cell.name] = known
        return self._validations[cell.name]


def was_stopped(cell: Cell) -> bool:
    """Return whether a candidate with a reason fell behind; gkd refuses the others."""
    return cell.reason.startswith(LOST.partition("{")[0])


def evaluations(directory: Path, stage: str, metric: str) -> list[float]:
    """Return the metric at each evaluation of a stage on validation rows, in order of their steps.

    A run that was resumed has repeated some: the last value of a step counts.

    Args:
        directory: The directory of the run, which may be running.
        stage: Name of the stage.
        metric: Name of the metric.
    """
    path = directory / METRICS
    key = f"validation/{metric}"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = _parsed(line)
        if entry.get("stage") == stage and entry.get(key) is not None:
            found[entry["step"]] = float(entry[key])
    return [found[step] for step in sorted(found)]


def _parsed(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # the run is just writing it
        return {}
    return entry if isinstance(entry, dict) else {}
