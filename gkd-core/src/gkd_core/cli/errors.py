"""Error messages and exit statuses of failing commands."""

from __future__ import annotations

import errno
import io
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gkd_core.errors import GkdError, escape_controls, first_line
from gkd_core.lease import LeaseLost

if TYPE_CHECKING:
    from gkd_core.plugins import Blame

FAILURE = 1
USER_ERROR = 2
INTERRUPTED = 130
RESUMABLE = 75
"""EX_TEMPFAIL: the run was stopped, and what it has done is saved."""
SPOKEN = (FAILURE, USER_ERROR, RESUMABLE, INTERRUPTED)
"""Exit statuses of a process that has reported its error."""

FULL = "no space left on device"
SAVE_MEMORY = (
    "Use smaller micro-batches: training.accumulation=2 or more gives the same result. Or lower "
    "task.max_length, or set training.gradient_checkpointing=true. `gkd plan` with the same "
    "settings shows what takes the memory; with --memory 40GiB it looks for a layout that fits"
)
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


LONGEST = 2000
"""Characters of a message."""

LEFT_OUT = " [...] "

INPUT_OUTPUT = (
    *(errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
"""Errors of the system about a file that are no mistake in gkd."""


class Interrupted(click.ClickException):
    """The run was interrupted; the message says how to continue."""

    exit_code = INTERRUPTED


class Stopped(Interrupted):
    """The run was interrupted, and what it has done is saved."""

    exit_code = RESUMABLE


class DiskFull(click.ClickException):
    """The disk is full; the message says how to continue."""

    exit_code = FAILURE


class PluginFailed(click.ClickException):
    """The code of a plugin has raised an error, or ended the process."""

    exit_code = FAILURE

    def __init__(self, blame: Blame, notes: Sequence[str] = ()) -> None:
        advice = "It is a fault of the plugin; GKD_TRACEBACK=1 shows the traceback"
        super().__init__(". ".join([str(blame), advice, *notes]))


class RankDied(click.ClickException):
    """A process of the run ended without reporting an error."""

    exit_code = FAILURE


class RankHangs(click.ClickException):
    """A process of the run did not come to where the others waited for it."""

    exit_code = FAILURE


@contextmanager
def resumable(directory: Path) -> Iterator[None]:
    """Say how to continue the run in `directory` if it is interrupted or fails."""
    from gkd_core.runs.directory import has_trained, how_to_go_on

    try:
        yield
    except KeyboardInterrupt as error:
        interrupted = Stopped if has_trained(directory) else Interrupted
        message = f"{str(error) or 'interrupted'}. {how_to_go_on(directory)}"
        raise interrupted(message) from error
    except LeaseLost:
        raise  # another process goes on
    except Exception as error:
        if not _is_disk_full(error):
            error.add_note(how_to_go_on(directory))
            raise
        message = f"{_disk_full(error)}. Free some space. {how_to_go_on(directory)}"
        raise DiskFull(message) from error


def report(error: Exception) -> int | None:
    """Print an error as a single message, preceded by its traceback if GKD_TRACEBACK=1.

    Returns:
        The exit status; None for an error that only a developer can fix, for which nothing is
        printed.
    """
    if isinstance(error, click.ClickException):
        _trace(error)
        shown = io.StringIO()
        error.show(shown)
        click.echo(printable(shown.getvalue()), nl=False, err=True)
        return error.exit_code
    told = _told(error)
    if told is None:
        return None
    message, status = told
    _trace(error)
    click.echo(f"Error: {printable(message)}", err=True)
    return status


def printable(message: str) -> str:
    """Return a message without control characters, and without the middle if it is very long."""
    shown = escape_controls(message)
    if len(shown) <= LONGEST:
        return shown
    half = LONGEST // 2 - len(LEFT_OUT)
    return f"{shown[:half]}{LEFT_OUT}{shown[-half:]}"


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that fails with an error."""
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    told = _told(error) if isinstance(error, Exception) else None
    return FAILURE if told is None else told[1]


def _told(error: Exception) -> tuple[str, int] | None:
    """Return the message and exit status of an error that a user can fix, else None."""
    if isinstance(error, GkdError):
        return str(error), USER_ERROR
    if isinstance(error, click.Abort):
        return "interrupted", INTERRUPTED
    if _is_out_of_memory(error):
        return f"out of memory: {first_line(error).rstrip('.')}. {SAVE_MEMORY}", USER_ERROR
    if _is_disk_full(error):
        return f"{_disk_full(error)}. Free some space, then try again", FAILURE
    return _told_of_plugin(error) or _told_of_file(error)


def _told_of_file(error: Exception) -> tuple[str, int] | None:
    """Return a message about the file that could not be read or written."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in INPUT_OUTPUT:
        return None
    notes = getattr(error, "__notes__", [])
    status = USER_ERROR if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else FAILURE
    return ". ".join([f"{error.filename}: {error.strerror}", *notes]), status


def _told_of_plugin(error: Exception) -> tuple[str, int] | None:
    """Return a message about the plugin that raised an error, if one did."""
    from gkd_core.plugins import registry

    blame = registry().blame(error)
    notes = getattr(error, "__notes__", [])
    return None if blame is None else (PluginFailed(blame, notes).message, FAILURE)


def _trace(error: Exception) -> None:
    if os.environ.get("GKD_TRACEBACK") == "1":
        traceback.print_exception(error)


def _is_out_of_memory(error: Exception) -> bool:
    # torch also reports memory errors as plain RuntimeErrors, with the reason only in the text.
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in NO_MEMORY)


def _is_disk_full(error: Exception) -> bool:
    # safetensors has its own exception, with the reason only in the text.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or FULL in str(error).lower()


def _disk_full(error: Exception) -> str:
    place = getattr(error, "filename", None)
    return f"the disk is full: {place or 'a file'} could not be written"
