"""`Table`: the columns read from one source, and its bad rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gkd_core.errors import DataError

SHOWN = 5


@dataclass
class Faults:
    """The bad rows of one source, reported together.

    Attributes:
        source: User-facing name of the source: a file name, or a dataset and its split.
        unit: Unit of the numbers: `line` of a text file, or `row`.
        reasons: Number of each bad row and what is wrong with it.
        advice: What to do about them.
    """

    source: str
    unit: str = "line"
    reasons: list[tuple[int, str]] = field(default_factory=list)
    advice: str = "Fix or remove the bad rows"

    def add(self, number: int, reason: str) -> None:
        """Record that row `number` (from 1) is bad."""
        self.reasons.append((number, reason))

    def check(self) -> None:
        """Raise `DataError` if there are bad rows, with the first few and the number of others."""
        if not self.reasons:
            return
        colon = ":" if self.unit == "line" else f": {self.unit} "
        ordered = sorted(self.reasons)
        told = [f"{self.source}{colon}{number}: {reason}" for number, reason in ordered[:SHOWN]]
        if len(ordered) > SHOWN:
            told.append(f"and {len(ordered) - SHOWN} more bad rows in {self.source}")
        raise DataError("\n".join([*told, f"{self.advice}; no row was used"]))


@dataclass(frozen=True)
class Table:
    """Rows stored by column.

    Attributes:
        columns: Values by column name, all of equal length.
        numbers: Line or row number of each row, from 1.
        faults: Bad rows found while reading, which the columns omit; also names the source.
        classes: Class names in id order, by label column, if the source defines them.
        known: Class names of the model at the start, or those that the user gave; rows need not
            show all of them.
    """

    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int]
    faults: Faults
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def source(self) -> str:
        """User-facing name of the source."""
        return self.faults.source

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of each row, and its values in some columns by name."""
        columns = [self.columns[name] for name in names]
        for number, *values in zip(self.numbers, *columns, strict=True):
            yield number, dict(zip(names, values, strict=True))

    def check_filled(self) -> None:
        """Raise `DataError` if there are no valid rows."""
        if not len(self):
            self.faults.check()
            raise DataError(f"{self.source} is empty: it has no rows. Give a file with rows")
