"""Row subsets: a share held out for validation, or fewer training rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import COLUMNS, Split
from gkd_core.data.stored_column import StoredColumn
from gkd_core.errors import DataError

KEY_BYTES = 8
"""Bytes of the hash by which equal texts are found; two others with one hash stay together, too."""


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
    order = _shuffled(len(groups), f"hold out {seed}")
    order = order[np.argsort(strata[groups.first][order], kind="stable")]
    free = _without_firsts(groups, order, strata)
    if not len(free):
        raise DataError(
            f"{source} has too few distinct rows to hold some out for validation. "
            "Give a validation file (task.validation) or more rows"
        )
    count = min(max(1, round(share * len(groups))), len(free))
    chosen = np.zeros(len(groups), bool)
    chosen[free[(2 * np.arange(count) + 1) * len(free) // (2 * count)]] = True
    held = chosen[groups.of_row]
    return take(split, np.flatnonzero(~held)), take(split, np.flatnonzero(held))


def fewer(split: Split, rows: int) -> Split:
    """Return at most `rows` rows, taken evenly from all classes.

    The selection does not depend on a run's seed, so that runs remain comparable.
    """
    places = np.fromiter((random.Random(row).random() for row in range(len(split))), float)
    order = np.lexsort((places, _strata(split)))
    count = min(rows, len(order))
    return take(split, np.sort(order[np.arange(count) * len(order) // max(count, 1)]))


def _shuffled(count: int, seed: str) -> NDArray[np.int64]:
    """Return the numbers below `count` in the order in which Python shuffles them."""
    order = array("q", range(count))
    random.Random(seed).shuffle(order)
    return np.frombuffer(order, np.int64)


def _strata(split: Split) -> NDArray[np.int64]:
    """Return the class of each row; a single class if labels are values or missing."""
    labels = (label for label in split.labels or () if isinstance(label, int))
    found = np.fromiter(labels, np.int64)
    return found if len(found) else np.zeros(len(split), np.int64)


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


def part_of(split: Split, start: int, count: int) -> Split:
    """Return some rows in a sequence, read into memory.

    Args:
        split: The rows.
        start: The first.
        count: How many, if there are as many.
    """
    columns = {name: getattr(split, name) for name in COLUMNS}
    part = slice(start, start + count)
    read = {name: column[part] for name, column in columns.items() if column is not None}
    return replace(split, **read)


class _Groups:
    """Rows that must not be separated, in the order of their first rows.

    Args:
        group: The number of the group of each row, int64 `[N]`; groups may be numbered in any way.

    Attributes:
        first: The first row of each group, int64.
        of_row: The group of each row, int64 `[N]`.
    """

    def __init__(self, group: NDArray[np.int64]) -> None:
        _, first, numbers = np.unique(group, return_index=True, return_inverse=True)
        by_first = np.argsort(first)
        rank = np.empty_like(by_first)
        rank[by_first] = np.arange(len(by_first))
        self.first: NDArray[np.int64] = first[by_first]
        self.of_row: NDArray[np.int64] = rank[numbers]

    def __len__(self) -> int:
        return len(self.first)


def _without_firsts(
    groups: _Groups, order: NDArray[np.int64], strata: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the groups in an order, without those that are the first to have a stratum."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    places = place[groups.of_row]
    names, stratum = np.unique(strata, return_inverse=True)
    firsts = np.full(len(names), len(order), np.int64)
    np.minimum.at(firsts, stratum, places)
    return np.delete(order, np.unique(firsts))


def _equal_rows(split: Split, names: Sequence[str] | None) -> _Groups:
    """Return the rows that must not be separated: with equal texts, or of one group."""
    pairs = repeat("") if split.pair is None else split.pair
    made = bytearray()
    for text, pair in zip(split.text, pairs, strict=split.pair is not None):
        first, second = str(text).strip(), str(pair).strip()
        key = f"{len(first)} {first}{second}".encode("utf-8", "surrogatepass")
        made += blake2b(key, digest_size=KEY_BYTES).digest()
    _, equal = np.unique(np.frombuffer(made, "<i8"), return_inverse=True)
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
