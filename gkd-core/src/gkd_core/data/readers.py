"""Read a local file into a `Table`, noting the line of every row that cannot be read.

Text files are UTF-8. csv follows RFC 4180; tsv has no quoting, as in GLUE; both have column names
in the first line. A txt file holds paragraphs separated by blank lines; without blank lines between
texts, each line is a paragraph. A conll (or bio) file has a word and its tag in each line, in
columns separated by spaces or tabs, and sentences separated by blank lines.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gkd_core.data.json_rows import read_json, read_jsonl
from gkd_core.data.spooled_table import TableBuilder
from gkd_core.data.table import Faults, Table
from gkd_core.data.text_lines import lines_of, not_utf8, text_lines
from gkd_core.errors import DataError, suggest

DOCUMENT = "-DOCSTART-"
"""First word of the lines that separate documents in CoNLL files."""

LONGEST_FIELD = 2**31 - 1
"""Characters in a csv field: the most that Python's reader can be set to on every platform."""

PARQUET_ROWS = 10_000
"""Rows of a parquet file that are read at once."""

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


def _csv(path: Path) -> Table:
    return _delimited(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Table:
    return _delimited(path, "\t", csv.QUOTE_NONE)


def _delimited(
    path: Path, delimiter: str, quoting: int, header: Sequence[str] = (), ragged: bool = False
) -> Table:
    faults = Faults(str(path))
    text = (line for _, line in lines_of(path, faults))
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
            raise DataError(f"{path}: row {number}: {not_utf8(error)} (column {name!r})") from error
    return values


def _txt(path: Path) -> Table:
    faults = Faults(str(path))
    lines = ((number, line.strip()) for number, line in text_lines(path, faults))
    rows = TableBuilder(faults, ["text"])
    for number, text in _paragraphs(lines) if _has_blank_lines(path) else lines:
        if text:
            rows.add(number, {"text": text})
    return rows.table()


def _has_blank_lines(path: Path) -> bool:
    """Return whether blank lines separate texts of a file."""
    blank = inside = False
    for _, line in text_lines(path, Faults(str(path))):  # another reading notes the faults
        filled = bool(line.strip())
        if inside and blank and filled:
            return True
        inside, blank = inside or filled, not filled
    return False


def _conll(path: Path) -> Table:
    """Read a word per line: the word in the first column, its tag in the last."""
    faults = Faults(str(path))
    numbers: list[int] = []
    words: list[list[str]] = []
    tags: list[list[str]] = []
    inside, width = False, 0
    for number, line in text_lines(path, faults):
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


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the number of the first line of each paragraph, and its text."""
    first, text = 0, list[str]()
    for number, line in lines:
        if line:
            first = number if not text else first
            text.append(line)
        elif text:
            yield first, "\n".join(text)
            text = []
    if text:
        yield first, "\n".join(text)


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _txt,
    ".conll": _conll,
    ".bio": _conll,
}
