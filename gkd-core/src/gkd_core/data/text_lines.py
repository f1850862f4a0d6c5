"""The numbered lines of a text file in UTF-8; what is not UTF-8 is noted."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from gkd_core.data.table import Faults
from gkd_core.errors import DataError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings than UTF-8, at the beginning of a file."""


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield numbered lines as editors show them: a carriage return alone ends one, too."""
    parts = (
        part
        for _, line in lines_of(path, faults)
        for part in line.removesuffix("\n").removesuffix("\r").split("\r")
    )
    return enumerate(parts, 1)


def lines_of(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines; a line that is not UTF-8 is recorded and yielded blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                check_mark(path, line)
            try:
                text = decode(line, first=number == 1)
            except ValueError as error:
                faults.add(number, str(error))
                text = "\n"
            yield number, text


def check_mark(path: Path, content: bytes) -> None:
    """Reject a file whose first bytes say that it is not UTF-8."""
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{path}:1: not UTF-8: it begins with the byte order mark of {name}. Save the file "
                "as UTF-8"
            )


def decode(content: bytes, *, first: bool) -> str:
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
        raise ValueError(f"{not_utf8(error)}; save the file as UTF-8") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what is wrong with bytes that are not UTF-8, and where."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
