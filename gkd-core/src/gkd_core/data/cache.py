"""The cache directory for files that gkd can recreate."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from filelock import FileLock

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.named_path import named_path

Entry = TypeVar("Entry")
Room: TypeAlias = Literal[
    "answers", "augmented", "dequantized", "embedded", "rows", "stages", "teachers"
]
"""The parts of the cache, each a folder."""

DIGEST = "digest"
CONTENT = "content"
"""Keys of an entry."""

DAMAGED = ".damaged"
"""Suffix of an entry that was set aside."""

_unwritable: set[str] = set()
"""Caches of which it has been said."""


def cache_dir() -> Path:
    """Return the cache directory: `GKD_CACHE`, or `gkd` in the user's cache directory.

    It may not exist yet.
    """
    own = os.environ.get("GKD_CACHE")
    if own:
        return named_path(own)
    return named_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gkd"


def cache_entry(room: Room, name: str) -> Path:
    """Return the place of an entry of the cache, which may not exist yet."""
    return cache_dir() / room / name


@contextmanager
def locked_entry(path: Path) -> Iterator[None]:
    """Hold the lock of an entry, a file or a directory; none in a cache that cannot be written."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        warn_unwritable(error)
    try:
        yield
    finally:
        lock.release()


def touch(path: Path) -> None:
    """Note that an entry was used: those that were not for longest go first."""
    with suppress(OSError):
        os.utime(path)


def write_entry(path: Path, content: Any) -> None:
    """Keep a JSON value in the cache; a cache that cannot be written is one warning."""
    try:
        write_file(path, json.dumps({DIGEST: digest.of_value(content), CONTENT: content}))
    except OSError as error:
        warn_unwritable(error)


def read_entry(path: Path, make: Callable[[Any], Entry]) -> Entry | None:
    """Return an entry of the cache; None if there is none that can be used.

    One that is damaged is named and set aside.

    Args:
        path: The file.
        make: Makes the entry from its JSON value.
    """
    try:
        entry = make(_content(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_unwritable(error)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        set_aside(path, str(error))
    else:
        touch(path)
        return entry
    return None


def set_aside(path: Path, problem: str) -> None:
    """Give a damaged entry of the cache, a file or a directory, another name, and say so."""
    aside = path.with_name(path.name + DAMAGED)
    with suppress(OSError):
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    warnings.warn(
        f"{path} in the cache is damaged ({problem}): it is created again; the damaged one is now "
        f"{aside.name}",
        stacklevel=3,
    )


def warn_unwritable(error: OSError) -> None:
    """Warn once that the cache cannot be used."""
    folder = str(cache_dir())
    if folder in _unwritable:
        return
    _unwritable.add(folder)
    warnings.warn(
        f"the cache {folder} cannot be used ({error.strerror or error}): its contents are created "
        "again each time. Set GKD_CACHE to another directory",
        stacklevel=3,
    )


def _content(entry: Any) -> Any:
    """Return the value of an entry; version 0.1 wrote it alone, without a digest."""
    if not isinstance(entry, dict) or entry.keys() != {DIGEST, CONTENT}:
        return entry
    if entry[DIGEST] != digest.of_value(entry[CONTENT]):
        raise ValueError("it has changed since it was written")
    return entry[CONTENT]
