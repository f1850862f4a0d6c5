"""The directory of a run: never overwritten unless the user asks for it."""

from __future__ import annotations

import glob
import itertools
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gkd_core.atomic import write_file
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError
from gkd_core.lease import Lease, LeaseLost, hold, is_inherited
from gkd_core.rollouts.answers import PARTS
from gkd_core.runs.run_files import CONFIG, DONE
from gkd_core.training.checkpoint import BEST, CHECKPOINT, CHECKPOINTS, NOT_FINITE

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved

Mode = Literal["new", "overwrite", "resume"]


def is_run(place: Path) -> bool:
    """Return whether a directory is that of a run."""
    return (place / CONFIG).is_file() and (place / STAGES).is_dir()


def run_name(resolved: Resolved) -> str:
    """Return the default name of a run's directory: the recipe or the method."""
    return resolved.recipe or resolved.stages[-1].config.method


def free_directory(name: str, parent: Path = Path("runs")) -> Path:
    """Return `runs/NAME-N` with the smallest free number."""
    safe = "".join(c if c.isalnum() or c in "+.-" else "_" for c in name)
    return next(path for n in itertools.count(1) if not (path := parent / f"{safe}-{n}").exists())


@contextmanager
def open_directory(directory: Path, mode: Mode, config: str) -> Iterator[Lease]:
    """Hold the directory of a run and write its configuration; clean up when the run ends.

    Under `overwrite`, the existing run is set aside. It is removed at the end, or restored if the
    new one ends before it has trained anything worth keeping.

    Args:
        directory: The directory.
        mode: What to do if it already exists.
        config: Content of the run's `config.toml`.

    Raises:
        ConfigError: The directory already exists, is not a run, is held by another process, or
            cannot be written.
    """
    restore_replaced(directory)
    refuse_occupied(directory, mode)
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(hold(directory))
            refuse_occupied(directory, mode)  # it may have been begun by another process
            aside = _begin(directory, mode, config)
        except OSError as error:
            raise ConfigError(
                f"the run directory {directory} cannot be written: {error.strerror}. Choose "
                "another with --output"
            ) from error
        if aside is not None:
            stack.enter_context(_replacing(directory, aside))
        yield lease


def restore_replaced(directory: Path) -> None:
    """Bring back the run that `--overwrite` had set aside, if its process died too early.

    One that was replaced by something worth keeping stays where it is, and is named.

    Args:
        directory: The directory of the run.

    Raises:
        ConfigError: Another process holds the directory.
    """
    if is_inherited(directory) or not _set_aside_before(directory):
        return  # what the launcher has set aside is its own
    with hold(directory):
        _restore(directory)


def _restore(directory: Path) -> None:
    is_kept = has_trained(directory)
    for aside in _set_aside_before(directory):
        if is_kept:
            warnings.warn(
                f"{aside} is the run that {directory} has replaced; the process that did so was "
                f"killed. gkd clean --leftovers {shlex.quote(str(directory.parent))} removes it; "
                "move it to keep it",
                stacklevel=2,
            )
        else:
            _put_back(aside, directory)
            is_kept = True
            warnings.warn(
                f"{directory} is again the run that --overwrite had moved aside: its replacement "
                "was killed before it had a checkpoint",
                stacklevel=2,
            )


def _begin(directory: Path, mode: Mode, config: str) -> Path | None:
    """Write the configuration of a run; return where the one that it replaces is."""
    aside = _set_aside(directory) if mode == "overwrite" and directory.exists() else None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / CONFIG, config)
    except BaseException:
        if aside is not None:
            _put_back(aside, directory)
        raise
    return aside


@contextmanager
def _replacing(directory: Path, aside: Path) -> Iterator[None]:
    """Remove the run that is replaced in the end, or put it back if nothing has replaced it."""
    try:
        yield
    except LeaseLost:
        raise  # all that is there belongs to another process
    except BaseException:
        if not has_trained(directory):
            _put_back(aside, directory)
            raise
        shutil.rmtree(aside.parent)
        raise
    else:
        shutil.rmtree(aside.parent)


def refuse_occupied(directory: Path, mode: Mode) -> None:
    """Reject a run directory that does not suit the mode.

    Raises:
        ConfigError: There is a run where a new one should be, or none to go on with.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        if mode == "resume":
            raise ConfigError(f"{directory} contains no run to resume. Omit --resume to start one")
        return
    if mode == "new":
        raise ConfigError(
            f"{directory} already exists. Continue it (--resume), replace it (--overwrite), "
            "or choose another directory (--output)"
        )
    if not (directory / CONFIG).exists():
        raise ConfigError(
            f"{directory} is not a run directory (it has no {CONFIG}), so it was left untouched. "
            "Choose another with --output"
        )


def _set_aside(directory: Path) -> Path:
    """Move a run into a new temporary folder beside it, whose name cannot clash with a user's."""
    folder = tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".old", dir=directory.parent)
    aside = Path(folder) / directory.name
    os.replace(directory, aside)
    return aside


def _set_aside_before(directory: Path) -> list[Path]:
    """Return the runs that a directory has replaced, the newest first."""
    name = glob.escape(directory.name)
    found = directory.parent.glob(f".{name}.*.old/{name}/")
    return sorted(found, key=lambda path: path.parent.stat().st_mtime, reverse=True)


def _put_back(aside: Path, directory: Path) -> None:
    """Give a run that was set aside its place again; what is there is not worth keeping."""
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(aside, directory)
    aside.parent.rmdir()


def has_trained(directory: Path) -> bool:
    """Return whether a run has a finished stage, a best student, a checkpoint or a saved step.

    Or answers that a teacher has written.
    """
    stages = directory / STAGES
    kept = (DONE, BEST, f"{CHECKPOINTS}/{CHECKPOINT}", NOT_FINITE, PARTS)
    return any(any(stages.glob(f"*/{name}")) for name in kept)


def how_to_go_on(directory: Path) -> str:
    """Return a sentence that says how to continue a run that ended too early."""
    place = shlex.quote(str(directory))
    if has_trained(directory):
        return f"Continue with: gkd run --resume --output {place}"
    return f"There is no checkpoint yet: start again, with --overwrite --output {place}"
