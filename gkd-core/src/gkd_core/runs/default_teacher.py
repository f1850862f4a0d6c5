"""The default teacher of a task: trained once on first use, then kept in the cache."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gkd_core import digest
from gkd_core.atomic import publish
from gkd_core.contract.task import DefaultTeacher, TaskData
from gkd_core.data.cache import (
    cache_entry,
    read_entry,
    set_aside,
    warn_unwritable,
    write_entry,
)
from gkd_core.data.cache_limit import use_entry
from gkd_core.models.content import model_digest
from gkd_core.models.load import seeded

TRAINED_AS_IN = "0.1.0"
"""The first version that trains default teachers as this one does; later ones reuse its teachers.

Raise it to the current version with every change to how a student is trained on labels.
"""

INITIAL_SEED = 0
"""Seeds what a task draws as it builds a teacher: the same for all that find it in the cache."""


@dataclass(frozen=True)
class DefaultTeacherStore:
    """The cache entry of a task's default teacher.

    Attributes:
        teacher: How it is built and trained.
        untrained: Directory of the model before training, with its tokenizer.
        trained: Directory of the trained model; does not exist until it is trained.
    """

    teacher: DefaultTeacher
    untrained: Path
    trained: Path

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines its weights."""
        return self.trained.parent.name

    @property
    def ready(self) -> bool:
        """Whether the teacher has been trained."""
        return self.trained.exists()

    def keep(self, directory: Path) -> None:
        """Copy a trained teacher into the cache, unless another run has put one there."""
        try:
            _keep(self.trained, lambda aside: shutil.copytree(directory, aside))
        except OSError as error:
            warn_unwritable(error)


def default_teacher_store(
    teacher: DefaultTeacher, data: TaskData, max_length: int
) -> DefaultTeacherStore:
    """Return the teacher's store, named by a hash of everything that determines its weights.

    Writes the untrained model if it does not exist yet. A damaged model is set aside.

    Args:
        teacher: How the teacher is built and trained.
        data: The data it is trained on.
        max_length: Longest sequence in tokens.
    """
    content = [data.rows_hash, data.kind, data.classes, max_length]
    content += [dict(teacher.training), dict(teacher.shape), teacher.mask_share, TRAINED_AS_IN]
    folder = cache_entry("teachers", digest.of_value(content))
    use_entry(folder)
    try:
        return _store(teacher, folder)
    except OSError as error:
        warn_unwritable(error)
    place = Path(tempfile.mkdtemp(prefix="gkd-teachers-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return _store(teacher, place / folder.name)


def _store(teacher: DefaultTeacher, folder: Path) -> DefaultTeacherStore:
    store = DefaultTeacherStore(teacher, folder / "untrained", folder / "trained")
    for model in (store.untrained, store.trained):
        if model.exists() and not _is_whole(model):
            set_aside(model, "its files are not those that were written")
    if not store.untrained.exists():
        with seeded(INITIAL_SEED):
            _keep(store.untrained, teacher.build)
    return store


def _keep(path: Path, make: Callable[[Path], object]) -> None:
    """Create a model in the cache, unless another process has created it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        make(aside)
        publish(aside, path)
        write_entry(_digest(path), model_digest(path))
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Return whether a model is as it was kept; version 0.1 kept no digest."""
    kept = read_entry(_digest(path), str)
    return kept is None or kept == model_digest(path)


def _digest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
