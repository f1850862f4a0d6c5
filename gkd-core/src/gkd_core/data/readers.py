"""Read a local file into a `Table`, noting the line of every row that cannot be read.

Text files are UTF-8. csv follows RFC 4180; tsv has no quoting, as in GLUE; both have column names
in the first line. A txt file holds paragraphs separated by blank lines; without blank lines between
texts, each line is a paragraph. A conll (or bio) file has a word and its tag in each line, in
columns separated by spaces or tabs, and sentences separated by blank lines.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gkd_core.data.spooled_table import TableBuilder
from gkd_core.data.table import Faults, Table
from gkd_core.errors import DataError, suggest

DOCUMENT = "-DOCSTART-"
"""First word of the lines that separate documents in CoNLL files."""

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings than UTF-8, at the beginning of a file."""

LONGEST_FIELD = 2**31 - 1
"""Characters in a csv field: the most that Python's reader can be set to on every platform."""

ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The form of half a character beyond U+FFFF in JSON; in UTF-8 itself it is an error."""

PARQUET_ROWS = 10_000
"""Rows of a parquet file that are read at once."""

SURROGATE = re.compile("[\ud800-\udfff]")

logger = logging.getLogger(__name__)


def read(path: Path) -> Table:
    """Read a file according to its suffix. Bad rows are recorded in the table's faults.

    Raises:
        DataError: The suffix is unknown, or the file cannot be opened.
    """
    check_suffix(path)
    try:
        return READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_tsv(path: Path, header: Sequence[str] = (), ragged: bool = False) -> Table:
    """Read a tsv file of any suffix.

    Args:
        path: The file.
        header: Names of the columns, if the first line does not have them.
        ragged: Whether rows with another number of fields are left out, with a warning.

    Raises:
        DataError: The file cannot be opened.
    """
    try:
        return _delimited(path, "\t", csv.QUOTE_NONE, header, ragged)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def check_suffix(path: Path) -> None:
    """Raise `DataError` if the suffix is not that of a supported format."""
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}, which is not a supported format."
            f"{suggest(path.suffix.lower(), READERS)} Supported are {', '.join(READERS)}"
        )


def _jsonl(path: Path) -> Table:
    faults = Faults(str(path))
    rows = TableBuilder(faults)
    for number, line in _lines(path, faults):
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


def _json(path: Path) -> Table:
    faults = Faults(str(path), unit="row")
    content = path.read_bytes()
    _check_mark(path, content)
    try:
        text = _decode(content, first=True)
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
    rows = TableBuilder(faults)
    escaped = ESCAPED_SURROGATE.search(text) is not None
    for number, value in enumerate(values, 1):
        _add_record(rows, number, value, faults, escaped)
    return rows.table()


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
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError("a number has too many digits") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeating(pairs)


def _csv(path: Path) -> Table:
    return _delimited(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Table:
    return _delimited(path, "\t", csv.QUOTE_NONE)


def _delimited(
    path: Path, delimiter: str, quoting: int, header: Sequence[str] = (), ragged: bool = False
) -> Table:
    faults = Faults(str(path))
    text = (line for _, line in _lines(path, faults))
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    expected = f"a row has {len(header)}"
    header = list(header)
    rows = TableBuilder(faults, header)
    left_out = []
    with _any_length():
        for number, fields in _records(reader, faults):
            if not header:
                faults.check()  # the line with the names may be one that could not be read
                header = _header(path, fields)
                rows = TableBuilder(faults, header)
                expected = f"the header has {len(header)}"
            elif len(fields) != len(header) and ragged:
                left_out.append(number)
            elif len(fields) != len(header):
                faults.add(number, f"{len(fields)} fields, but {expected}")
            elif len(header) > 1 and _names(fields) == header:
                faults.add(number, "the names of the columns again, as where files were joined")
            else:
                rows.add(number, dict(zip(header, fields, strict=True)))
    if left_out:
        count, first = len(left_out), left_out[0]
        logger.warning("%s:%d: %d rows have too few or too many fields", path, first, count)
    return rows.table()


@contextmanager
def _any_length() -> Iterator[None]:
    """Allow fields of any length in a csv file; the limit belongs to the whole process."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(reader: Any, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.add(number, f"not valid csv: {error}")
            continue
        if fields:
            yield number, fields


def _header(path: Path, fields: list[str]) -> list[str]:
    names = _names(fields)
    if len(set(names)) < len(names) or "" in names:
        raise DataError(
            f"{path}:1: the first line must give every column a unique name, got {names}"
        )
    return names


def _names(fields: Iterable[str]) -> list[str]:
    return [field.removeprefix("\ufeff").strip() for field in fields]


def _parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: every column must have a unique name, got {names}")
            rows, read = TableBuilder(Faults(str(path), unit="row"), names), 0
            for batch in file.iter_batches(PARQUET_ROWS):
                columns = [_values(path, name, batch[name], read) for name in names]
                for row in zip(*columns, strict=True):
                    read += 1
                    rows.add(read, dict(zip(names, row, strict=True)))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
    return rows.table()


def _values(path: Path, name: str, column: Any, before: int) -> list[Any]:
    """Return the values of a parquet column; Arrow does not check its texts before.

    Args:
        path: The file.
        name: The column.
        column: Its values in some rows.
        before: Number of the rows before them.
    """
    values = []
    for number, value in enumerate(column, before + 1):
        try:
            values.append(value.as_py())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: row {number}: {_not_utf8(error)} (column {name!r})"
            ) from error
    return values


def _txt(path: Path) -> Table:
    faults = Faults(str(path))
    lines = [(number, line.strip()) for number, line in _text_lines(path, faults)]
    filled = [number for number, line in lines if line]
    if len(filled) > 1 and filled[-1] - filled[0] + 1 > len(filled):
        numbers, texts = _paragraphs(lines)
    else:
        numbers, texts = filled, [line for _, line in lines if line]
    return Table({"text": texts}, numbers, faults)


def _conll(path: Path) -> Table:
    """Read a word per line: the word in the first column, its tag in the last."""
    faults = Faults(str(path))
    numbers: list[int] = []
    words: list[list[str]] = []
    tags: list[list[str]] = []
    inside, width = False, 0
    for number, line in _text_lines(path, faults):
        # Other spaces, as in `10 000` with a fixed one, are part of a word.
        fields = [field for field in re.split(r"[ \t]+", line.strip()) if field]
        if not fields or fields[0] == DOCUMENT:
            inside = False
            continue
        width = width or len(fields)
        if len(fields) < 2:
            faults.add(number, f"the word {fields[0]!r} has no tag")
        elif len(fields) != width:
            faults.add(number, f"{len(fields)} columns, but the first word has {width}")
        else:
            if not inside:
                numbers.append(number)
                words.append([])
                tags.append([])
            words[-1].append(fields[0])
            tags[-1].append(fields[-1])
            inside = True
    return Table({"tokens": words, "tags": tags}, numbers, faults)


def _paragraphs(lines: list[tuple[int, str]]) -> tuple[list[int], list[str]]:
    numbers: list[int] = []
    texts: list[list[str]] = []
    inside = False
    for number, line in lines:
        if line and not inside:
            numbers.append(number)
            texts.append([])
        if line:
            texts[-1].append(line)
        inside = bool(line)
    return numbers, ["\n".join(paragraph) for paragraph in texts]


def _text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield numbered lines as editors show them: a carriage return alone ends one, too."""
    parts = (
        part
        for _, line in _lines(path, faults)
        for part in line.removesuffix("\n").removesuffix("\r").split("\r")
    )
    return enumerate(parts, 1)


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines; a line that is not UTF-8 is recorded and yielded blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _check_mark(path, line)
            try:
                text = _decode(line, first=number == 1)
            except ValueError as error:
                faults.add(number, str(error))
                text = "\n"
            yield number, text


def _check_mark(path: Path, content: bytes) -> None:
    """Reject a file whose first bytes say that it is not UTF-8."""
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{path}:1: not UTF-8: it begins with the byte order mark of {name}. Save the file "
                "as UTF-8"
            )


def _decode(content: bytes, *, first: bool) -> str:
    """Return bytes as text.

    Args:
        content: The bytes.
        first: Whether the file begins with them, and with them the mark that UTF-8 may have.

    Raises:
        ValueError: They are not text in UTF-8.
    """
    zero = content.find(b"\0")
    if zero >= 0:
        raise ValueError(
            f"a zero byte at position {zero + 1}, as in UTF-16; save the file as UTF-8"
        )
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{_not_utf8(error)}; save the file as UTF-8") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


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


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _txt,
    ".conll": _conll,
    ".bio": _conll,
}
