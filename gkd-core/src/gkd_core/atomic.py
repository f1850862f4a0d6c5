"""Files and directories that are complete whenever they are there under their own name.

They are written under another name in the same folder, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)  # it can't be read without being set
MODE = 0o666 & ~_UMASK
"""The mode of a new file. safetensors gives its files one that only their owner can read."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Errors of a file system without hard links."""


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it becomes `path` when the block ends without error.

    Args:
        path: The file; one that is there is replaced. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same file of the cache.
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        publish(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically: it is either complete or absent, even after a crash.

    Args:
        path: The file; an existing one is replaced, missing folders are created.
        content: Bytes, or a text, which is encoded as UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    with draft(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def create_file(path: Path, content: str) -> bool:
    """Write a file atomically, unless it is there: of several processes, one writes it.

    Args:
        path: The file. Missing folders are made.
        content: A text, which is encoded as UTF-8.

    Returns:
        Whether it was written.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content.encode())
        _flush(aside)
        os.link(aside, path)  # unlike a rename, it leaves a file that is there
        _flush(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return True


def publish(aside: Path, path: Path) -> None:
    """Give a finished file, or a directory of files, its own name.

    Args:
        aside: What was written, in the folder of `path`.
        path: Its name. A file that is there is replaced; a directory must not be there.

    Raises:
        OSError: It cannot be renamed.
    """
    for written in (aside, *aside.rglob("*")):
        if written.is_file():
            _open_to_others(written)
        if written.is_file() or written.is_dir():
            _flush(written)
    os.replace(aside, path)
    _flush(path.parent)


def replace_directory(aside: Path, path: Path) -> None:
    """Give a finished directory its own name, replacing one that may be there.

    No system call swaps two directories everywhere. If the process dies in between, the directory
    that was there is `.NAME.old` beside it.
    """
    old = _old(path)
    if path.exists():
        _remove(old)
        os.replace(path, old)
    publish(aside, path)
    _remove(old)


def restore_directory(path: Path) -> None:
    """Give a directory its name again whose process died while it was being replaced."""
    if _old(path).is_dir() and not path.exists():
        os.replace(_old(path), path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    """Remove a directory, or a link to one, as far as that is possible."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _open_to_others(path: Path) -> None:
    """Give a file the mode that it would have if Python had made it."""
    if path.stat().st_mode & 0o777 != MODE:
        with suppress(PermissionError):  # where a file system has no modes
            path.chmod(MODE)


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
