"""The choice of a study: made on validation rows, then evaluated on the test rows.

Of many methods, the best on some rows is better there than it is: it was lucky too. So nothing is
chosen on the rows that it is then judged on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from gkd_core.config.expression import parse_expression
from gkd_core.errors import ConfigError
from gkd_core.studies.comparisons import SeedComparison, adjust, compare, rises, seed_priors
from gkd_core.studies.study_config import METHOD
from gkd_core.studies.study_results import Axes, CellResult, StudyResults, axes_of

PLAIN = "kd"
"""The method that combinations have to beat."""


@dataclass(frozen=True)
class Chosen:
    """The best of some variants on validation rows.

    Attributes:
        among: What it was chosen from, as in `combinations`.
        axes: Its value on each axis that the study varies.
        cells: Its cells.
        validation: The metric on the validation rows, the mean over tasks and seeds.
        test: The same on the rows that it is judged on.
    """

    among: str
    axes: Axes
    cells: Sequence[CellResult]
    validation: float
    test: float

    @property
    def label(self) -> str:
        """Its values on the axes, as in `method=kd`."""
        return ", ".join(f"{axis}={value}" for axis, value in self.axes) or "the only variant"


Rival: TypeAlias = tuple[Chosen, str, Sequence[CellResult]]
"""What was chosen, and the name and the cells of a variant that it is compared with."""


@dataclass(frozen=True)
class Duel:
    """The comparison of the choice with another cell, on the test rows.

    Attributes:
        first: What was chosen.
        second: Name of the other.
        comparison: The comparison; its p-value is adjusted for the number of comparisons.
    """

    first: Chosen
    second: str
    comparison: SeedComparison


@dataclass(frozen=True)
class Choice:
    """The choice of a study.

    Attributes:
        chosen: The best of all variants, of single methods and of combinations, as far as there are
            two of a sort.
        duels: Comparisons of these on the test rows.
        notes: What could not be chosen, with the reason.
    """

    chosen: Sequence[Chosen]
    duels: Sequence[Duel]
    notes: Sequence[str]


def choose(results: StudyResults) -> Choice:
    """Choose on validation rows, and judge on test rows.

    Args:
        results: The results of a study.
    """
    variants, notes = _complete(results)
    best = _best("all", variants, results)
    if best is None:
        return Choice([], [], [*notes, "nothing can be chosen: no validation metric is known"])
    singles = _best("single methods", _by_number(variants, single=True), results)
    combined = _best("combinations", _by_number(variants, single=False), results)
    rivals: list[Rival] = []
    center = variants.get(axes_of(results.config.center))
    if center is not None and best.cells is not center:
        rivals.append((best, "the baseline", center))
    if combined is not None and singles is not None:
        rivals += _rivals(combined, singles, variants)
    priors = seed_priors(results)
    pairs = {_pair(mine, cells): (mine.cells, cells) for mine, _, cells in rivals}
    compared = adjust([compare(*each, priors) for each in pairs.values()], rises(results))
    found = dict(zip(pairs, compared, strict=True))
    duels = [Duel(mine, name, found[_pair(mine, cells)]) for mine, name, cells in rivals]
    chosen = [best, *(each for each in (singles, combined) if each is not None and combined)]
    return Choice(chosen, duels, [*notes, *_warnings(results)])


def _rivals(
    combined: Chosen, singles: Chosen, variants: Mapping[Axes, Sequence[CellResult]]
) -> Iterator[Rival]:
    """Yield what a combination has to beat: plain `kd` and the best single method."""
    plain = _plain(variants, combined)
    if plain is not None and plain is not singles.cells:
        yield combined, f"{METHOD}={PLAIN}", plain
    yield combined, f"the best single method, {singles.label}", singles.cells


def _pair(mine: Chosen, rival: Sequence[CellResult]) -> tuple[Axes, Axes]:
    """Return what tells a comparison from others; several duels may be of the same variants."""
    return mine.cells[0].axes, rival[0].axes


def _complete(results: StudyResults) -> tuple[Mapping[Axes, Sequence[CellResult]], list[str]]:
    """Return the variants with all students, and say which have not."""
    whole, notes = {}, []
    for axes, cells in results.variants().items():
        missing = [each for each in cells if each.outcome is None]
        if missing:
            label = ", ".join(f"{axis}={value}" for axis, value in axes)
            notes.append(f"{label} cannot be chosen: {len(missing)} of {len(cells)} have no result")
        else:
            whole[axes] = cells
    return whole, notes


def _best(
    among: str, variants: Mapping[Axes, Sequence[CellResult]], results: StudyResults
) -> Chosen | None:
    """Return the best of some variants on validation rows; None if there is none to choose."""
    found = []
    for axes, cells in variants.items():
        outcomes = [each.outcome for each in cells if each.outcome is not None]
        known = [each.validation for each in outcomes if each.validation is not None]
        if known and len(known) == len(cells):
            varied = tuple((axis, value) for axis, value in axes if axis in results.axes)
            quality = fmean(each.quality for each in outcomes)
            found.append(Chosen(among, varied, cells, fmean(known), quality))
    sign = 1 if rises(results) else -1
    return max(found, key=lambda each: sign * each.validation, default=None)


def _by_number(
    variants: Mapping[Axes, Sequence[CellResult]], *, single: bool
) -> Mapping[Axes, Sequence[CellResult]]:
    """Return the variants with one method, or those with several."""
    return {
        axes: cells
        for axes, cells in variants.items()
        if (count := _methods(dict(axes).get(METHOD))) and (count == 1) == single
    }


def _methods(value: object) -> int:
    """Return the number of methods in an expression; 0 if it is none."""
    try:
        return len(parse_expression(str(value)).members) if value is not None else 0
    except ConfigError:
        return 0


def _plain(
    variants: Mapping[Axes, Sequence[CellResult]], combined: Chosen
) -> Sequence[CellResult] | None:
    """Return the variant that differs from another by its method only, which is plain."""
    axes = tuple((a, PLAIN if a == METHOD else v) for a, v in combined.cells[0].axes)
    return variants.get(axes)


def _warnings(results: StudyResults) -> list[str]:
    if all(outcome.split == "test" for _, outcome in results.judged()):
        return []
    return [
        "some tasks have no test rows: what is chosen there is judged on the rows that chose it, "
        "and looks better than it is (name test rows with task.test)"
    ]
