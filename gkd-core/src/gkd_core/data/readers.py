"""Read a local file into a `Table`, noting the line of every row that cannot be read.

Text files are UTF-8. csv follows RFC 4180; tsv has no quoting, as in GLUE; both have column names
in the first line. A txt file holds paragraphs separated by blank lines; without blank lines between
texts, each line is a paragraph. A conll (or bio) file has a word and its tag in each line, and
sentences separated by blank lines.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gkd_core.data.table import Faults, Table
from gkd_core.errors import DataError, suggest

DOCUMENT = "-DOCSTART-"
"""First word of the lines that separate documents in CoNLL files."""


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


def check_suffix(path: Path) -> None:
    """Raise `DataError` if the suffix is not that of a supported format."""
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}, which is not a supported format."
            f"{suggest(path.suffix.lower(), READERS)} Supported are {', '.join(READERS)}"
        )


def _jsonl(path: Path) -> Table:
    faults = Faults(str(path))
    records: dict[int, Mapping[str, Any]] = {}
    for number, line in _lines(path, faults):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            faults.add(number, f"invalid JSON: {error.msg} at column {error.colno}")
            continue
        _add_record(records, number, value, faults)
    return _from_records(records, faults)


def _json(path: Path) -> Table:
    faults = Faults(str(path), unit="row")
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_not_utf8(error)}. Save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}. "
            "Expected a list of objects; with one object per line, name the file .jsonl"
        ) from error
    if not isinstance(values, list):
        raise DataError(
            f"{path} contains {_article(values)}. Expected a list of objects; "
            "with one object per line, name the file .jsonl"
        )
    records: dict[int, Mapping[str, Any]] = {}
    for number, value in enumerate(values, 1):
        _add_record(records, number, value, faults)
    return _from_records(records, faults)


def _csv(path: Path) -> Table:
    return _delimited(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Table:
    return _delimited(path, "\t", csv.QUOTE_NONE)


def _delimited(path: Path, delimiter: str, quoting: int) -> Table:
    faults = Faults(str(path))
    text = (line for _, line in _lines(path, faults))
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    header: list[str] = []
    numbers, rows = [], []
    for number, fields in _records(reader, faults):
        if not header:
            header = _header(path, fields)
        elif len(fields) != len(header):
            fault = f"{len(fields)} fields, but the header has {len(header)}"
            faults.add(number, fault)
        else:
            numbers.append(number)
            rows.append(fields)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return Table(dict(zip(header, columns, strict=True)), numbers, faults)


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
    names = [name.strip() for name in fields]
    if len(set(names)) < len(names) or "" in names:
        raise DataError(
            f"{path}:1: the first line must give every column a unique name, got {names}"
        )
    return names


def _parquet(path: Path) -> Table:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        content = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
    numbers = range(1, content.num_rows + 1)
    return Table(content.to_pydict(), numbers, Faults(str(path), unit="row"))


def _txt(path: Path) -> Table:
    faults = Faults(str(path))
    lines = [(number, line.strip()) for number, line in _lines(path, faults)]
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
    inside = False
    for number, line in _lines(path, faults):
        fields = line.split()
        if not fields or fields[0] == DOCUMENT:
            inside = False
        elif len(fields) < 2:
            faults.add(number, f"the word {fields[0]!r} has no tag")
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


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines; a line that is not UTF-8 is recorded and yielded blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                faults.add(number, _not_utf8(error))
                yield number, "\n"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


def _add_record(
    records: dict[int, Mapping[str, Any]], number: int, value: Any, faults: Faults
) -> None:
    if isinstance(value, dict):
        records[number] = value
    else:
        faults.add(number, f"expected an object with named columns, got {_article(value)}")


def _from_records(records: Mapping[int, Mapping[str, Any]], faults: Faults) -> Table:
    names = dict.fromkeys(name for record in records.values() for name in record)
    columns = {name: [record.get(name) for record in records.values()] for name in names}
    return Table(columns, list(records), faults)


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
