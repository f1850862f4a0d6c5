"""`TableBuilder`: takes the rows of a file one by one, and keeps those of a large file on disk."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gkd_core.data.array_spool import ROOM
from gkd_core.data.cache import cache_dir, warn_unwritable
from gkd_core.data.stored_column import ColumnSpool, StoredColumn
from gkd_core.data.table import Faults, Table

IN_MEMORY = 50_000
"""Rows that are kept in memory; where there are more, as many at once go to the disk."""

COLUMN = "values"
"""Name of the only column of a table."""


class TableBuilder:
    """Takes the rows of a file one by one; all but the first go to the disk.

    Args:
        faults: The bad rows of the file, which it adds to.
        names: Names of the columns that are known before the first row.
    """

    def __init__(self, faults: Faults, names: Iterable[str] = ()) -> None:
        self._faults = faults
        self._numbers = array("q")
        self._waiting: list[Mapping[str, Any]] = []
        self._names = tuple(names)
        self._columns: dict[str, ColumnSpool | list[Any]] = {}
        self._taken = 0

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Take a row.

        Args:
            number: Its line or number.
            row: Its values by column; any that is missing is None.
        """
        self._numbers.append(number)
        self._waiting.append(row)
        if len(self._waiting) == IN_MEMORY:
            self._spool()

    def table(self) -> Table:
        """Return the rows."""
        if self._taken:
            self._spool()
            columns: dict[str, Sequence[Any]] = {
                name: column.column() if isinstance(column, ColumnSpool) else column
                for name, column in self._columns.items()
            }
            return Table(columns, self._numbers, self._faults)
        names = dict.fromkeys([*self._names, *(name for row in self._waiting for name in row)])
        rows = self._waiting
        return Table(
            {name: [row.get(name) for row in rows] for name in names}, self._numbers, self._faults
        )

    def _spool(self) -> None:
        """Write the rows that wait."""
        names = dict.fromkeys(name for row in self._waiting for name in row)
        for name in [*self._names, *names]:
            if name not in self._columns:
                self._columns[name] = _spool(self._taken)
        for name in self._columns:
            values = [row.get(name) for row in self._waiting]
            self._columns[name] = _extended(self._columns[name], values)
        self._taken += len(self._waiting)
        self._waiting.clear()


def spooled(values: Iterable[Any]) -> Sequence[Any]:
    """Return a column of values that are made one by one, in memory or on disk."""
    rows = TableBuilder(Faults("values"), [COLUMN])
    for number, value in enumerate(values, 1):
        rows.add(number, {COLUMN: value})
    return rows.table().columns[COLUMN]


def joined(columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Return the values of several columns, one after the other, on disk if one of them is."""
    if not any(isinstance(column, StoredColumn) for column in columns):
        return [value for column in columns for value in column]
    made = _spool(0)
    for column in columns:
        for start in range(0, len(column), IN_MEMORY):
            made = _extended(made, _part(column, start))
    return made.column() if isinstance(made, ColumnSpool) else made


def _part(column: Sequence[Any], start: int) -> Sequence[Any]:
    """Return some values in a sequence; those on disk are not read."""
    stop = min(start + IN_MEMORY, len(column))
    return (
        column.take(range(start, stop)) if isinstance(column, StoredColumn) else column[start:stop]
    )


def _extended(column: ColumnSpool | list[Any], values: Sequence[Any]) -> ColumnSpool | list[Any]:
    """Return a column with more values; one that cannot be stored is in memory from then on."""
    if isinstance(column, list):
        column += values
        return column
    try:
        column.add(values)
    except (OSError, TypeError) as error:
        if isinstance(error, OSError):
            warn_unwritable(error)
        return [*column.column(), *values]
    return column


def _spool(missing: int) -> ColumnSpool | list[Any]:
    """Return a store for a column, in memory if the cache cannot be written.

    Args:
        missing: Rows before that have no value in it.
    """
    folder = cache_dir() / ROOM
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spool = ColumnSpool(folder)
        for start in range(0, missing, IN_MEMORY):
            spool.add([None] * min(IN_MEMORY, missing - start))
    except OSError as error:
        warn_unwritable(error)
        return [None] * missing
    return spool
