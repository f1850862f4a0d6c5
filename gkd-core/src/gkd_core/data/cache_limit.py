"""The contents and the size limit of the cache: the least recently used entries go first.

What a live run uses is never removed. A run says so in a file of its own, whose lease tells others
whether the run still lives.
"""

from __future__ import annotations

import atexit
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from filelock import FileLock
from pydantic import ByteSize, TypeAdapter, ValidationError

from gkd_core.data.cache import Room, cache_dir, touch
from gkd_core.errors import ConfigError
from gkd_core.lease import hold, holder

LIMIT = "GKD_CACHE_SIZE"
"""Variable with the size that the cache may have."""

DEFAULT_LIMIT = "100GiB"
WRITTEN_WITHIN = 60 * 60
"""Seconds without a write after which what is unfinished was left by a process that was killed."""

USES = ".uses"
"""Folder of the cache with a file for each run, whose lines name the entries that it uses."""


@dataclass(frozen=True)
class CacheItem:
    """A file or directory of the cache: its size in bytes, and when it was last used."""

    room: Room
    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class _Use:
    """The use of a cache by a process: the file that says so, and its lease."""

    process: int
    folder: Path
    path: Path
    held: ExitStack


_own: _Use | None = None


def cache_limit() -> int:
    """Return the size in bytes that the cache may have.

    Raises:
        ConfigError: `GKD_CACHE_SIZE` is no size.
    """
    given = os.environ.get(LIMIT) or DEFAULT_LIMIT
    try:
        return int(TypeAdapter(ByteSize).validate_python(given))
    except ValidationError as error:
        raise ConfigError(
            f"{LIMIT} = {given!r} is not a size; write, for example, {LIMIT}={DEFAULT_LIMIT}"
        ) from error


def use_entry(path: Path) -> None:
    """Keep an entry of the cache, which need not exist yet, as long as this process lives.

    In a cache that cannot be written, there is nothing to do.
    """
    folder = cache_dir()
    with suppress(OSError), _locked(folder):
        with _own_file(folder).open("a") as file:
            file.write(f"{path.relative_to(folder)}\n")
        touch(path)


def cache_items() -> list[CacheItem]:
    """Return the contents of the cache, in the order of its rooms; nothing is written."""
    return list(_entries(cache_dir()))


def in_use() -> set[Path]:
    """Return the entries that live runs use; nothing is written."""
    return _used(cache_dir())


def remove_unused(items: Iterable[CacheItem]) -> list[CacheItem]:
    """Remove entries of the cache, except those that live runs use.

    Returns:
        Those that were removed.

    Raises:
        OSError: The cache cannot be written.
    """
    folder = cache_dir()
    with _locked(folder):
        _forget_ended(folder)
        used = _used(folder)
        found = [item for item in items if item.path not in used]
        for item in found:
            _remove(item.path)
    return found


def shrink_cache() -> None:
    """Remove the entries that were not used for longest until the cache is within its limit."""
    folder = cache_dir()
    with suppress(OSError), _locked(folder):
        _forget_ended(folder)
        _shrink(folder, cache_limit())


def _shrink(folder: Path, limit: int) -> None:
    entries = sorted(_entries(folder), key=lambda entry: entry.used)
    excess = sum(entry.size for entry in entries) - limit
    used = _used(folder) if excess > 0 else set()
    for entry in entries:
        if excess <= 0:
            return
        if entry.path not in used:
            _remove(entry.path)
            excess -= entry.size


def _locked(folder: Path) -> FileLock:
    """Return the lock under which entries are removed, or said to be in use."""
    (folder / USES).mkdir(parents=True, exist_ok=True)
    return FileLock(folder / USES / ".lock")


def _entries(folder: Path) -> Iterator[CacheItem]:
    """Yield what may be removed: not what is being written, nor the locks of others."""
    for room in get_args(Room):
        for path in folder.glob(f"{room}/*"):
            if path.suffix == ".lock":
                continue
            with suppress(FileNotFoundError):
                files = [path, *(path.rglob("*") if path.is_dir() else ())]
                if path.suffix == ".tmp" and _is_being_written(files):
                    continue
                size = sum(each.lstat().st_size for each in files)
                yield CacheItem(room, path, size, path.stat().st_mtime)


def _is_being_written(files: Iterable[Path]) -> bool:
    return max(each.lstat().st_mtime for each in files) > time.time() - WRITTEN_WITHIN


def _remove(path: Path) -> None:
    """Remove an entry: who reads it meanwhile finds all of a directory, or nothing."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _used(folder: Path) -> set[Path]:
    """Return the entries that live runs use."""
    found: set[Path] = set()
    for file in (folder / USES).glob("*.txt"):
        if holder(file) is not None:
            with suppress(FileNotFoundError):  # the run has just ended
                found |= {folder / line for line in file.read_text().splitlines()}
    return found


def _forget_ended(folder: Path) -> None:
    """Remove the files of runs that no longer live."""
    for file in (folder / USES).glob("*.txt"):
        if holder(file) is None:
            file.unlink(missing_ok=True)


def _own_file(folder: Path) -> Path:
    """Return the file of this process, whose lease it then holds until it ends."""
    global _own
    if _own is not None and (_own.process, _own.folder) == (os.getpid(), folder):
        return _own.path
    _end()
    path = folder / USES / f"{uuid.uuid4().hex}.txt"
    held = ExitStack()
    held.callback(path.unlink, missing_ok=True)
    held.enter_context(hold(path))
    _own = _Use(os.getpid(), folder, path, held)
    return path


@atexit.register
def _end() -> None:
    """End the use of what this process has used; a fork uses nothing."""
    if _own is not None and _own.process == os.getpid():
        with suppress(OSError):
            _own.held.close()
