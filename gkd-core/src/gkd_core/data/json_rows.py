"""Read rows of JSON: an object in each line, or a list of objects in one text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gkd_core.data.spooled_table import TableBuilder
from gkd_core.data.table import Faults, Table
from gkd_core.data.text_lines import check_mark, decode, lines_of
from gkd_core.errors import DataError

ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The form of half a character beyond U+FFFF in JSON; in UTF-8 itself it is an error."""

SURROGATE = re.compile("[\ud800-\udfff]")

SPACE = re.compile(r"[ \t\n\r]*")

BLOCK = 2**20
"""Characters of a list that are read at once."""


def read_jsonl(path: Path) -> Table:
    """Read a file with an object in each line, in which the lines of bad rows are noted."""
    faults = Faults(str(path))
    rows = TableBuilder(faults)
    for number, line in lines_of(path, faults):
        if not line.strip():
            continue
        try:
            value = _parse(line)
        except json.JSONDecodeError as error:
            faults.add(number, f"invalid JSON: {error.msg} at column {error.colno}")
        except ValueError as error:
            faults.add(number, str(error))
        else:
            _add_record(rows, number, value, faults, ESCAPED_SURROGATE.search(line) is not None)
    return rows.table()


def read_json(path: Path) -> Table:
    """Read a file with a list of objects, in which the numbers of bad rows are noted.

    Raises:
        DataError: It is no such list.
    """
    try:
        return _table(path, _items(path))
    except ValueError:  # what is wrong, and where, is said of the whole text
        return _table(path, _whole(path))


def _table(path: Path, values: Iterable[tuple[Any, bool]]) -> Table:
    """Return rows, given each value and whether its text may have half of a character."""
    faults = Faults(str(path), unit="row")
    rows = TableBuilder(faults)
    for number, (value, escaped) in enumerate(values, 1):
        _add_record(rows, number, value, faults, escaped)
    return rows.table()


def _items(path: Path) -> Iterator[tuple[Any, bool]]:
    """Yield the values of a list, of which only a part is in memory.

    Raises:
        ValueError: It is not a list of objects in UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = _Text(file)
        text.take("[")
        end = text.peek() == "]"
        while not end:
            yield text.value()
            end = text.peek() == "]"
            if not end:
                text.take(",")
        text.take("]")
        if text.peek():
            raise ValueError("the list is followed by something")


class _Text:
    """The text of a file from some place on, which is read as it is needed."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._place = 0

    def peek(self) -> str:
        """Return the next character that is not a space; empty at the end."""
        while True:
            space = SPACE.match(self._text, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def take(self, expected: str) -> None:
        """Go on after a character.

        Raises:
            ValueError: There is another.
        """
        if self.peek() != expected:
            raise ValueError(f"{expected} is missing")
        self._place += 1

    def value(self) -> tuple[Any, bool]:
        """Return the next value, and whether its text may have half of a character.

        Raises:
            ValueError: There is none, or none that Python can hold.
        """
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                if not self._more():
                    raise
            except RecursionError as error:
                raise ValueError("the JSON is nested too deeply") from error
            else:
                escaped = ESCAPED_SURROGATE.search(self._text, self._place, end) is not None
                self._place = end
                return found, escaped

    def _more(self) -> bool:
        """Read on, twice as much of a value that does not end; return whether there was more."""
        left = self._text[self._place :]
        block = self._file.read(max(BLOCK, len(left)))
        self._text, self._place = left + block, 0
        return bool(block)


def _whole(path: Path) -> Iterator[tuple[Any, bool]]:
    """Return what `_items` yields, read at once.

    Raises:
        DataError: The text is not a list in UTF-8; the message says where.
    """
    content = path.read_bytes()
    check_mark(path, content)
    try:
        text = decode(content, first=True)
        values = _parse(text or "[]")
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}. "
            "Expected a list of objects; with one object per line, name the file .jsonl"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(values, list):
        raise DataError(
            f"{path} contains {_article(values)}. Expected a list of objects; "
            "with one object per line, name the file .jsonl"
        )
    escaped = ESCAPED_SURROGATE.search(text) is not None
    return ((value, escaped) for value in values)


class _Repeating(dict[str, Any]):
    """An object that has a name twice, of which only the last value is left."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = next(name for name in names if names.count(name) > 1)


def _parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is invalid, or Python cannot hold it.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError:
        return json.loads(text)  # raises the same, but names a byte order mark
    except ValueError as error:
        raise ValueError("a number has too many digits") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeating(pairs)


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _add_record(
    rows: TableBuilder,
    number: int,
    value: Any,
    faults: Faults,
    escaped: bool,
) -> None:
    """Add a row, or a fault.

    Args:
        rows: Takes the row.
        number: Line or number of the row.
        value: The row.
        faults: The faults so far.
        escaped: Whether its text may have half of a character.
    """
    if not isinstance(value, dict):
        faults.add(number, f"expected an object with named columns, got {_article(value)}")
    elif isinstance(value, _Repeating):
        faults.add(number, f"the column {value.twice!r} is there twice")
    elif half := _half(value) if escaped else "":
        faults.add(number, half)
    else:
        rows.add(number, value)


def _half(record: Mapping[str, Any]) -> str:
    """Return the place of half a character in a row; empty if there is none."""
    for name, value in record.items():
        for text in _strings(value):
            if half := SURROGATE.search(text):
                return (
                    f"half of a character, \\u{ord(half[0]):04x} at position {half.start() + 1} "
                    f"(column {name!r}), as where a text is cut within an emoji"
                )
    return ""


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, at every depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _article(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"the value {value!r}")
