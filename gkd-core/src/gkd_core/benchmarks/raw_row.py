"""`RawRow`: a row of a benchmark's file, whose values are checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gkd_core.data.labels import is_missing, label_name


class MissingColumn(LookupError):
    """The file has no column of this name: it is probably that of another task."""


@dataclass(frozen=True)
class RawRow:
    """A row, or an object within it.

    Attributes:
        values: Its values by the name of their column.
    """

    values: Mapping[str, Any]

    def value(self, name: str) -> Any:
        """Return a value.

        Raises:
            MissingColumn: No row of the file has such a value.
            ValueError: This row has none.
        """
        if name not in self.values:
            raise MissingColumn(name)
        value = self.values[name]
        if is_missing(value):
            raise ValueError(f"{name!r} is empty")
        return value

    def text(self, name: str) -> str:
        """Return a text.

        Raises:
            ValueError: The value is no text, or empty.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise ValueError(f"{name!r} is {value!r}, not a text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts.

        Raises:
            ValueError: The value is none.
        """
        value = self.value(name)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{name!r} is not a list of texts")
        return list(value)

    def decimal(self, name: str) -> float:
        """Return a finite number.

        Raises:
            ValueError: The value is none.
        """
        value = self.value(name)
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        if isinstance(value, bool) or not math.isfinite(found):
            raise ValueError(f"{name!r} is {value!r}, not a number")
        return found

    def number(self, name: str) -> int:
        """Return a whole number.

        Raises:
            ValueError: The value is none.
        """
        value = self.value(name)
        if isinstance(value, bool) or not str(value).strip().lstrip("-").isdigit():
            raise ValueError(f"{name!r} is {value!r}, not a whole number")
        return int(value)

    def objects(self, name: str) -> list[RawRow]:
        """Return a list of objects.

        Raises:
            ValueError: The value is none.
        """
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise ValueError(f"{name!r} is not a list of objects")
        return [RawRow(one) for one in value]

    def object(self, name: str) -> RawRow:
        """Return an object.

        Raises:
            ValueError: The value is none.
        """
        value = self.value(name)
        if not isinstance(value, Mapping):
            raise ValueError(f"{name!r} is {value!r}, not an object")
        return RawRow(value)

    def class_id(self, name: str, classes: Sequence[str]) -> int:
        """Return the id of a class, which is given by its name or as a number.

        Args:
            name: The column of the label.
            classes: The names of the classes.

        Raises:
            ValueError: It is none of the classes.
        """
        label = label_name(self.value(name)).lower()
        if label in classes:
            return list(classes).index(label)
        if label.isdigit() and int(label) < len(classes):
            return int(label)
        shown = ", ".join(map(repr, classes))
        raise ValueError(f"the label is {label!r}, which is not one of {shown}")
