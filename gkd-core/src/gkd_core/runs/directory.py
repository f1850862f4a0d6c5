"""The directory of a run: never overwritten unless the user asks for it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gkd_core.atomic import write_file
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError
from gkd_core.training.checkpoint import BEST, CHECKPOINTS, NOT_FINITE

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved

Mode = Literal["new", "overwrite", "resume"]
CONFIG = "config.toml"
DONE = "done.json"


def run_name(resolved: Resolved) -> str:
    """Return what a run is called unless the user names its directory: the recipe or the method."""
    return resolved.recipe or resolved.stages[-1].config.method


def free_directory(name: str, parent: Path = Path("runs")) -> Path:
    """Return `runs/NAME-N` with the smallest free number."""
    safe = "".join(c if c.isalnum() or c in "+.-" else "_" for c in name)
    return next(path for n in itertools.count(1) if not (path := parent / f"{safe}-{n}").exists())


@contextmanager
def open_directory(directory: Path, mode: Mode, config: str) -> Iterator[None]:
    """Prepare the directory of a run and write its configuration; clean up when the run ends.

    Under `overwrite`, the existing run is set aside. It is removed at the end, or restored if the
    new one fails before it has trained anything worth keeping.

    Args:
        directory: The directory.
        mode: What to do if it already exists.
        config: Content of the run's `config.toml`.

    Raises:
        ConfigError: The directory already exists, is not a run, or cannot be written.
    """
    _refuse_occupied(directory, mode)
    try:
        aside = _set_aside(directory) if mode == "overwrite" and directory.exists() else None
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / CONFIG, config)
    except OSError as error:
        raise ConfigError(
            f"the run directory {directory} cannot be written: {error.strerror}. Choose another "
            "with --output"
        ) from error
    try:
        yield
    except BaseException:
        if aside is not None and not has_trained(directory):
            shutil.rmtree(directory)
            os.replace(aside, directory)
        raise
    finally:
        if aside is not None:
            shutil.rmtree(aside.parent)


def _refuse_occupied(directory: Path, mode: Mode) -> None:
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


def has_trained(directory: Path) -> bool:
    """Tell whether a run has a finished stage, a best student, a checkpoint or a saved step."""
    stages = directory / STAGES
    return any(any(stages.glob(f"*/{name}")) for name in (DONE, BEST, CHECKPOINTS, NOT_FINITE))
