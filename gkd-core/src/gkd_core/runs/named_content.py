"""The content of what options name: a file may change while its path stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gkd_core import digest


def named_content(options: BaseModel) -> dict[str, str | dict[str, str]]:
    """Return hashes of the files and directories that options name, by their paths as written.

    An option names a file if its value, or one inside of it, is the path of a file that exists; a
    directory, if it is also of type `Path`.
    """
    return {str(value): _content(Path(value)) for value in _paths(options.model_dump())}


def _paths(value: Any) -> Iterator[str | Path]:
    """Yield the values that name content, also inside of tables and lists."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _paths(part)
    elif isinstance(value, str | Path) and _exists(value):
        yield value


def _exists(named: str | Path) -> bool:
    try:
        path = Path(named).expanduser()
        return path.exists() if isinstance(named, Path) else path.is_file()
    except (OSError, ValueError, RuntimeError):  # longer than a path may be, a null byte, no home
        return False


def _content(path: Path) -> str | dict[str, str]:
    path = path.expanduser()
    if path.is_file():
        return digest.of_files([path])
    files = (file for file in path.rglob("*") if file.is_file())
    return digest.of_each({file.relative_to(path).as_posix(): file for file in files})
