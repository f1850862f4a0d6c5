"""`HubColumn`: a column of a dataset of the hub, read from the disk part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from datasets import Dataset

PART = 1000
"""Rows that are read at once; `datasets` takes a hundred times as long for one after the other."""


class HubColumn(Sequence[Any]):
    """A column of a dataset, with names in place of class ids.

    Args:
        dataset: The dataset.
        name: The column.

    Attributes:
        classes: The names in the order of their ids; empty if the column has no classes.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.classes = _class_names(dataset.features[name])
        self._rows = dataset.select_columns([name])
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._named(self._rows[index][self._name])

    def __iter__(self) -> Iterator[Any]:
        for part in self._rows.iter(PART):
            yield from self._named(part[self._name])

    def _named(self, value: Any) -> Any:
        """Return a value, or several, with names in place of ids."""
        if not self.classes:
            return value
        if isinstance(value, list):
            return [self._named(one) for one in value]
        return None if value is None or value < 0 else self.classes[value]


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the class names of a column of classes, or of lists of classes."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", ()))
