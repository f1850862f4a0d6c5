"""A folder of the cache that is made once: files, and `entry.json` with their hashes."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gkd_core import digest
from gkd_core.atomic import publish
from gkd_core.data.cache import locked_entry, read_entry, set_aside, warn_unwritable, write_entry
from gkd_core.data.cache_limit import use_entry

ENTRY = "entry.json"
FILES, SAID, CONTENT = "files", "said", "content"
"""Keys of `entry.json`: the hashes of the files, what was logged as they were made, the rest."""

Value = TypeVar("Value")


def made_once(
    folder: Path,
    make: Callable[[], Value],
    write: Callable[[Path, Value], Any],
    read: Callable[[Path, Any], Value],
) -> Value:
    """Return the contents of a folder of the cache; create it if there is none.

    Of several processes that need it, one makes it and the others wait. What was logged meanwhile
    is logged again by those that read it. A folder that is damaged or cannot be written is a
    warning.

    Args:
        folder: The folder.
        make: Makes the value.
        write: Writes it into a folder, and returns what else is to be known, as JSON can hold it.
            It raises `TypeError` for a value that cannot be written, which is then not kept.
        read: Returns the value of a folder, mapped into memory where possible.
    """
    use_entry(folder)
    with locked_entry(folder):
        found = _found(folder, read)
        if found is not None:
            return found
        with _noted() as said:
            value = make()
        kept = _found(folder, read, again=False) if _kept(folder, value, write, said) else None
        return value if kept is None else kept


def _found(folder: Path, read: Callable[[Path, Any], Value], again: bool = True) -> Value | None:
    """Return the contents of a folder, if it is complete.

    Args:
        folder: The folder.
        read: Returns its value.
        again: Whether what was logged as it was made is to be logged again.
    """
    entry = read_entry(folder / ENTRY, dict)
    if entry is None:
        if folder.exists():
            set_aside(folder, f"it has no {ENTRY}")
        return None
    try:
        files = {name: folder / name for name in entry[FILES]}
        if digest.of_each_named(files) != entry[FILES]:
            raise ValueError("a file has changed since it was written")
        value = read(folder, entry[CONTENT])
    except (OSError, ValueError, KeyError, TypeError) as error:
        set_aside(folder, str(error))
        return None
    for name, message in entry[SAID] if again else ():
        logging.getLogger(name).warning("%s", message)
    return value


def _kept(
    folder: Path,
    value: Value,
    write: Callable[[Path, Value], Any],
    said: list[tuple[str, str]],
) -> bool:
    """Write a value into a folder; return whether it is there."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        content = write(aside, value)
        files = digest.of_each_named({path.name: path for path in aside.iterdir()})
        write_entry(aside / ENTRY, {FILES: files, SAID: said, CONTENT: content})
        publish(aside, folder)
    except TypeError:
        return False
    except OSError as error:
        warn_unwritable(error)
        return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


@contextmanager
def _noted() -> Iterator[list[tuple[str, str]]]:
    """Yield a list that takes the warnings that gkd logs."""
    said: list[tuple[str, str]] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append((record.name, record.getMessage()))  # type: ignore[method-assign]
    logger = logging.getLogger("gkd_core")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
