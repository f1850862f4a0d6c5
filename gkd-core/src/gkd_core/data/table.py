"""`Table`: columns as read from one source, and the bad rows found in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gkd_core.errors import DataError

SHOWN = 5


@dataclass
class Faults:
    """The bad rows of one source, reported together.

    Attributes:
        source: What a person calls the source: a file name, or a dataset and its split.
        unit: What numbers count: `line` of a text file, or `row`.
        reasons: Number of the bad row and what is wrong with it.
    """

    source: str
    unit: str = "line"
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, reason: str) -> None:
        """Note that row `number` (from 1) is bad."""
        self.reasons.append((number, reason))

    def check(self) -> None:
        """Raise `DataError` if a row was bad: the first few, and how many more there are."""
        if not self.reasons:
            return
        colon = ":" if self.unit == "line" else f": {self.unit} "
        ordered = sorted(self.reasons)
        told = [f"{self.source}{colon}{number}: {reason}" for number, reason in ordered[:SHOWN]]
        if len(ordered) > SHOWN:
            told.append(f"and {len(ordered) - SHOWN} more bad rows in {self.source}")
        raise DataError("\n".join([*told, "Mend or remove what is wrong; no row was used."]))


@dataclass(frozen=True)
class Table:
    """Rows by column.

    Attributes:
        columns: Values by column name; all of equal length.
        numbers: Line or row number of each row, from 1.
        faults: Bad rows met while reading, which the columns leave out; also names the source.
        classes: Class names in the order of their ids, by label column, where the source fixes it.
    """

    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int]
    faults: Faults
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def source(self) -> str:
        """What a person calls the source."""
        return self.faults.source

    def check_filled(self) -> None:
        """Raise `DataError` if there is no good row."""
        if not len(self):
            self.faults.check()
            raise DataError(f"{self.source} is empty: it holds no rows. Give a file with rows.")
