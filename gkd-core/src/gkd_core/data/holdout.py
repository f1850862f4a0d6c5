"""Row subsets: a share held out for validation, or fewer training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import Split
from gkd_core.data.stored_column import StoredColumn
from gkd_core.errors import DataError

KEY_BYTES = 16
"""Bytes of the hash by which equal texts are found."""


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
    strata = np.asarray(_strata(split))
    groups = _equal_rows(split, split.group if together is None else together)
    order = list(range(len(groups)))
    random.Random(f"hold out {seed}").shuffle(order)
    order.sort(key=strata[groups.first].tolist().__getitem__)
    free = _without_firsts(groups, order, strata)
    if not len(free):
        raise DataError(
            f"{source} has too few distinct rows to hold some out for validation. "
            "Give a validation file (task.validation) or more rows"
        )
    count = min(max(1, round(share * len(groups))), len(free))
    held = np.zeros(len(split), bool)
    for i in range(count):
        held[groups.rows(free[(2 * i + 1) * len(free) // (2 * count)])] = True
    return take(split, np.flatnonzero(~held)), take(split, np.flatnonzero(held))


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


def take(split: Split, rows: Sequence[int] | NDArray[np.int64]) -> Split:
    """Return the given rows of a split."""
    values = ((field.name, getattr(split, field.name)) for field in fields(split))
    columns = {name: value for name, value in values if isinstance(value, Sequence)}
    numbers = rows.tolist() if isinstance(rows, np.ndarray) else rows
    taken: dict[str, Any] = {
        name: column.take(rows)
        if isinstance(column, StoredColumn)
        else [column[row] for row in numbers]
        for name, column in columns.items()
    }
    return replace(split, **taken)


class _Groups:
    """Rows that must not be separated, in the order of their first rows.

    Args:
        group: The number of the group of each row, int64 `[N]`; groups may be numbered in any way.

    Attributes:
        first: The first row of each group, int64.
    """

    def __init__(self, group: NDArray[np.int64]) -> None:
        _, first, numbers = np.unique(group, return_index=True, return_inverse=True)
        by_first = np.argsort(first)
        rank = np.empty_like(by_first)
        rank[by_first] = np.arange(len(by_first))
        self.first: NDArray[np.int64] = first[by_first]
        numbers = rank[numbers]
        self._rows = np.argsort(numbers, kind="stable")
        self._starts = np.cumsum([0, *np.bincount(numbers)])

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the rows of a group."""
        return self._rows[self._starts[number] : self._starts[number + 1]]

    def share(self, values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether all rows of each group have the same value."""
        ordered, starts = values[self._rows], self._starts[:-1]
        least, most = np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)
        found: NDArray[np.bool_] = least == most
        return found


def _without_firsts(
    groups: _Groups, order: Sequence[int], strata: NDArray[np.int64]
) -> Sequence[int]:
    """Return the groups in an order, without those that are the first to have a stratum."""
    left, first = set(strata.tolist()), strata[groups.first].tolist()
    uniform = groups.share(strata).tolist()
    free: list[int] = []
    for number in order:
        own = {first[number]} if uniform[number] else {*strata[groups.rows(number)].tolist()}
        if left.isdisjoint(own):
            free.append(number)
        left -= own
    return free


def _equal_rows(split: Split, names: Sequence[str] | None) -> _Groups:
    """Return the rows that must not be separated: with equal texts, or of one group."""
    pairs = repeat("") if split.pair is None else split.pair
    made = bytearray()
    for text, pair in zip(split.text, pairs, strict=split.pair is not None):
        first, second = str(text).strip(), str(pair).strip()
        key = f"{len(first)} {first}{second}".encode("utf-8", "surrogatepass")
        made += blake2b(key, digest_size=KEY_BYTES).digest()
    keys = np.frombuffer(made, "<i8").reshape(len(split), -1)
    _, equal = np.unique(keys, axis=0, return_inverse=True)
    equal = equal.reshape(-1)
    return _Groups(equal if names is None else _connected(equal, names))


def _connected(equal: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of the group of each row if rows of one name belong together, too."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    known: dict[str, int] = {}
    named = np.array([known.setdefault(name, len(known)) for name in names])
    texts = int(equal.max()) + 1
    # Texts and names are the nodes of a graph, in which each row is an edge.
    edges = (np.ones(len(equal), bool), (equal, texts + named))
    size = texts + len(known)
    _, component = connected_components(coo_matrix(edges, (size, size)), directed=False)
    found: NDArray[np.int64] = component[equal].astype(np.int64)
    return found
