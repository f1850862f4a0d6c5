"""Row subsets: a share held out for validation, or fewer training rows."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from gkd_core.contract.task import Split
from gkd_core.errors import DataError


def hold_out(
    split: Split, share: float, seed: int, source: str, together: Sequence[str] | None = None
) -> tuple[Split, Split]:
    """Split rows into training rows and about `share` of them for validation.

    Rows with equal texts and rows of one group are never separated. With class ids as labels, the
    share is taken evenly from all classes, and each class keeps a row in training. The same seed
    gives the same rows.

    Args:
        split: All rows.
        share: Share of validation rows, between 0 and 1.
        seed: Seed of the selection.
        source: User-facing name of the rows, for the error.
        together: Names of larger groups of rows that are not separated. Default: those of the rows.

    Raises:
        DataError: There are too few distinct rows.
    """
    strata = _strata(split)
    groups = _equal_rows(split, split.group if together is None else together)
    random.Random(f"hold out {seed}").shuffle(groups)
    groups.sort(key=lambda rows: strata[rows[0]])
    free: list[list[int]] = []
    kept_classes: set[int] = set()
    for rows in groups:
        new = {strata[row] for row in rows} - kept_classes
        kept_classes |= new
        if not new:
            free.append(rows)
    if not free:
        raise DataError(
            f"{source} has too few distinct rows to hold some out for validation. "
            "Give a validation file (task.validation) or more rows"
        )
    count = min(max(1, round(share * len(groups))), len(free))
    chosen = [free[(2 * i + 1) * len(free) // (2 * count)] for i in range(count)]
    validation = {row for rows in chosen for row in rows}
    kept = [row for row in range(len(split)) if row not in validation]
    return take(split, kept), take(split, sorted(validation))


def fewer(split: Split, rows: int) -> Split:
    """Return at most `rows` rows, taken evenly from all classes.

    The selection does not depend on a run's seed, so that runs remain comparable.
    """
    strata = _strata(split)
    order = sorted(range(len(split)), key=lambda row: (strata[row], _shuffled(row)))
    count = min(rows, len(order))
    return take(split, sorted(order[i * len(order) // count] for i in range(count)))


def _shuffled(row: int) -> float:
    return random.Random(row).random()


def _strata(split: Split) -> Sequence[int]:
    """Return the class of each row; a single class if labels are values or missing."""
    labels = [label for label in split.labels or () if isinstance(label, int)]
    return labels or [0] * len(split)


def take(split: Split, rows: Sequence[int]) -> Split:
    """Return the given rows of a split."""
    values = ((field.name, getattr(split, field.name)) for field in fields(split))
    columns = {name: value for name, value in values if isinstance(value, Sequence)}
    taken: dict[str, Any] = {n: [column[row] for row in rows] for n, column in columns.items()}
    return replace(split, **taken)


def _equal_rows(split: Split, names: Sequence[str] | None) -> list[list[int]]:
    """Return the rows that must not be separated: with equal texts, or of one group."""
    pairs = split.pair or [""] * len(split)
    equal: dict[Hashable, list[int]] = {}
    for row, (text, pair) in enumerate(zip(split.text, pairs, strict=True)):
        equal.setdefault((str(text).strip(), str(pair).strip()), []).append(row)
    if names is None:
        return list(equal.values())
    grouped: dict[Hashable, list[int]] = {}
    for row, group in enumerate(names):
        grouped.setdefault(group, []).append(row)
    return _connected([*equal.values(), *grouped.values()], len(split))


def _connected(links: Iterable[Sequence[int]], count: int) -> list[list[int]]:
    """Return the sets of rows that are linked, directly or through others."""
    sets = [[row] for row in range(count)]
    for first, *others in links:
        for row in others:
            if sets[row] is not sets[first]:
                smaller, larger = sorted((sets[row], sets[first]), key=len)
                larger += smaller
                for moved in smaller:
                    sets[moved] = larger
    return [sorted(rows) for row, rows in enumerate(sets) if row == min(rows)]
