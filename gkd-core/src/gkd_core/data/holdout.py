"""Row subsets: a share held out for validation, or fewer training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gkd_core.contract.task import Split
from gkd_core.errors import DataError


def hold_out(split: Split, share: float, seed: int, source: str) -> tuple[Split, Split]:
    """Split rows into training rows and about `share` of them for validation.

    Rows with equal texts are never separated. With class ids as labels, the share is taken evenly
    from all classes, and each class keeps a row in training. The same seed gives the same rows.

    Args:
        split: All rows.
        share: Share of validation rows, between 0 and 1.
        seed: Seed of the selection.
        source: User-facing name of the rows, for the error.

    Raises:
        DataError: There are too few distinct rows.
    """
    strata = _strata(split)
    groups = _equal_rows(split)
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
    return Split(
        text=[split.text[row] for row in rows],
        pair=None if split.pair is None else [split.pair[row] for row in rows],
        labels=None if split.labels is None else [split.labels[row] for row in rows],
    )


def _equal_rows(split: Split) -> list[list[int]]:
    pairs = split.pair or [""] * len(split)
    groups: dict[tuple[str, str], list[int]] = {}
    for row, (text, pair) in enumerate(zip(split.text, pairs, strict=True)):
        groups.setdefault((str(text).strip(), str(pair).strip()), []).append(row)
    return list(groups.values())
