"""Conversion of user-written labels to class ids or values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from gkd_core.data.table import Faults
from gkd_core.errors import DataError

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"(-?\d+)\.0+")
"""A whole number as pandas writes it once a cell of its column was empty."""

FEW = 20
"""Number of classes that is accepted for any number of rows."""

BOOLEANS = ("false", "true")

UNLABELED = ("", "-1", "-1.0", "None", "nan")
"""Label strings that stand for a hidden or missing label."""


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: null, blank, or not a number, as pandas writes null."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def label_name(value: Any) -> str:
    """Return the label as a string: `1` (also for 1.0), `0.5`, `true`, `positive`.

    Raises:
        ValueError: The label is missing, infinite, or is a list or an object.
    """
    if is_missing(value):
        raise ValueError("the row has no label")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"the label is {value}; expected a finite number")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int, float)):
        shown = str(value).strip()
        whole = WHOLE.fullmatch(shown)
        return str(int(whole[1])) if whole else shown
    raise ValueError(f"the label is {value!r}; expected a string or number")


def label_names(values: Iterable[Any]) -> set[str]:
    """Return the different labels as strings, without those that are missing or malformed."""
    names = set()
    for value in values:
        with suppress(ValueError):
            names.add(label_name(value))
    return names


def shown_label(value: Any) -> str:
    """Return the label as a string, also where it is missing or malformed."""
    return next(iter(label_names([value])), str(value))


def is_unlabeled(values: Iterable[Any]) -> bool:
    """Whether no row has a label: all are missing or -1, as in GLUE's test sets."""
    return all(str(value).strip() in UNLABELED for value in values)


def number_of(label: str) -> float | None:
    """Return the value of a label that is a number; None for another."""
    return float(label) if NUMBER.fullmatch(label) else None


def find_classes(labels: Sequence[str], source: str) -> tuple[str, ...]:
    """Return the class names: numbers in numeric order, else alphabetically.

    Raises:
        DataError: There is only one class, or too many for a class label column.
    """
    found = set(labels)
    if len(found) < 2:
        raise DataError(
            f"every row of {source} has the label {found.pop()!r}; classification needs at least "
            "2 classes. Check task.label, or set task.kind"
        )
    if len(found) > max(FEW, len(labels) // 2):
        raise DataError(
            f"{source} has {len(found)} different labels in {len(labels)} rows, too many for "
            "classes. Check task.label, or set task.kind to regression"
        )
    return sorted_classes(found)


def known_classes(labels: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return the known classes in their usual order if all labels are among them, else none."""
    found = set(labels)
    names = set(spelled_as(map(label_name, known), found))
    return sorted_classes(names) if found and found <= names else ()


def spelled_as(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return names with booleans spelled as in others: `true` of JSON is the `True` of Python."""
    known = set(others)
    spell = [way for way in (str.lower, str.capitalize, str.upper) if known & {*map(way, BOOLEANS)}]
    if len(spell) != 1:
        return list(names)
    return [spell[0](name) if name.lower() in BOOLEANS else name for name in names]


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in their usual order: numbers in numeric order, else alphabetically."""
    found = list(names)
    if all(NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (float(name), name)))
    return tuple(sorted(found))


def class_ids(
    labels: Sequence[str], classes: Sequence[str], numbers: Sequence[int], faults: Faults
) -> list[int]:
    """Return the class id of each label; unknown labels are recorded in `faults`."""
    ids = {name: index for index, name in enumerate(classes)}
    for label, number in zip(labels, numbers, strict=True):
        if label not in ids:
            shown = ", ".join(map(repr, list(classes)[:10])) + (", ..." if len(ids) > 10 else "")
            faults.add(number, f"label {label!r} never occurs in training; the classes are {shown}")
    return [ids.get(label, -1) for label in labels]


def label_values(labels: Sequence[str], numbers: Sequence[int], faults: Faults) -> list[float]:
    """Return the value of each label; labels that are not numbers are recorded in `faults`."""
    for label, number in zip(labels, numbers, strict=True):
        if not NUMBER.fullmatch(label):
            faults.add(number, f"label {label!r} is not a number, which task.kind=regression needs")
        elif math.isinf(float(label)):
            faults.add(number, f"label {label!r} is too large a number")
    return [float(label) if NUMBER.fullmatch(label) else math.nan for label in labels]
