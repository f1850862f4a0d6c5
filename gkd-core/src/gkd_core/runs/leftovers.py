"""Leftovers of killed commands beside runs, students and exports."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gkd_core.errors import ConfigError
from gkd_core.lease import holder
from gkd_core.runs.directory import has_trained, is_run
from gkd_core.runs.run_files import CONFIG

SET_ASIDE = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]+\.old")
"""A folder with a run that `--overwrite` has set aside."""

REPLACED = re.compile(r"\.(?P<name>.+)\.old")
UNFINISHED = re.compile(r"\.(?P<name>.+)\.tmp")
"""Directories that are replaced, and those that replace them, as `atomic` names them."""

DRAFT = re.compile(r".+\.\d+\.tmp")
MARKER = re.compile(r"\.(?P<name>.+)\.lease")

WRITTEN = ("config.json", "lineage.json", "manifest.json", "*.safetensors", "*.onnx")
"""Files of which every directory that gkd writes has at least one."""


@dataclass(frozen=True)
class Leftover:
    """A file or directory that a killed command has left.

    Attributes:
        path: Where it is.
        what: What it is, in words.
        place: Where it belongs, if nothing else is there that is worth keeping; None if it may be
            removed.
    """

    path: Path
    what: str
    place: Path | None = None

    @property
    def size(self) -> int:
        """Its size in bytes."""
        inner = self.path.rglob("*") if self.path.is_dir() else ()
        return sum(each.lstat().st_size for each in (self.path, *inner))


def find_leftovers(folder: Path) -> list[Leftover]:
    """Return the leftovers of killed commands in a folder and those below it; writes nothing.

    What live processes hold is not among it.

    Args:
        folder: The folder, such as `runs`.

    Raises:
        ConfigError: It is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder, so nothing was left there")
    return [found for found in _found(folder) if not _is_held(found.path)]


def clear(leftovers: Iterable[Leftover]) -> None:
    """Remove leftovers, or give them their place again, unless a process has begun there meanwhile.

    Raises:
        OSError: One cannot be removed.
    """
    for leftover in leftovers:
        if _is_held(leftover.path):
            continue
        if leftover.place is not None:
            _put_back(leftover.path, leftover.place)
        elif leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def _put_back(path: Path, place: Path) -> None:
    if place.exists():  # begun, but without anything worth keeping
        shutil.rmtree(place)
    os.replace(path, place)
    if SET_ASIDE.fullmatch(path.parent.name):
        path.parent.rmdir()


def _found(folder: Path) -> Iterator[Leftover]:
    for place, folders, files in os.walk(folder):
        for name in sorted(folders):
            leftover = _of_folder(Path(place, name))
            if leftover is not None:
                folders.remove(name)
                yield leftover
        for name in sorted(files):
            leftover = _of_file(Path(place, name), folder)
            if leftover is not None:
                yield leftover


def _of_folder(path: Path) -> Leftover | None:
    """Return the kind of leftover that a folder is, if it is one."""
    aside, old = SET_ASIDE.fullmatch(path.name), REPLACED.fullmatch(path.name)
    if aside and (path / aside["name"] / CONFIG).is_file():
        place = path.with_name(aside["name"])
        if has_trained(place):
            return Leftover(path, f"the run that {place} has replaced")
        what = f"the run that was to be replaced in {place}"
        return Leftover(path / aside["name"], what, place)
    if old and _is_written(path):
        place = path.with_name(old["name"])
        if place.exists():
            return Leftover(path, f"what {place} has replaced")
        return Leftover(path, f"what was to be replaced in {place}", place)
    unfinished = UNFINISHED.fullmatch(path.name)
    if unfinished and (_is_written(path) or not any(path.iterdir())):
        return Leftover(path, f"an unfinished {path.with_name(unfinished['name'])}")
    return None


def _is_written(path: Path) -> bool:
    """Return whether a directory is one that gkd writes."""
    return any(any(path.glob(pattern)) for pattern in WRITTEN)


def _of_file(path: Path, folder: Path) -> Leftover | None:
    """Return the kind of leftover that a file is, if it is one."""
    if MARKER.fullmatch(path.name) and path.read_bytes()[:9] == b"filelock/":
        return Leftover(path, "the mark of a process that was killed")
    if DRAFT.fullmatch(path.name) and _is_of_run(path, folder):
        return Leftover(path, "an unfinished file")
    return None


def _is_of_run(path: Path, folder: Path) -> bool:
    """Return whether a file lies in the directory of a run."""
    above = (each for each in path.parents if each == folder or folder in each.parents)
    return any(map(is_run, above))


def _is_held(path: Path) -> bool:
    """Return whether a live process holds the lease of what a path belongs to."""
    patterns = (SET_ASIDE, REPLACED, UNFINISHED, MARKER)
    own = path.absolute()
    found = (pattern.fullmatch(each.name) for each in (own, own.parent) for pattern in patterns)
    names = {match["name"] for match in found if match}
    beside = [each.with_name(name) for each in (own, own.parent) for name in names]
    return any(holder(each) for each in (*beside, *own.parents[:-1]))
