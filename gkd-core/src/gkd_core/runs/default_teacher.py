"""The teacher that a task brings along: trained once on the spot, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import gkd_core
from gkd_core.contract.task import DefaultTeacher, TaskData
from gkd_core.data.cache import cache_dir


@dataclass(frozen=True)
class DefaultTeacherStore:
    """Where a task's default teacher lives.

    Attributes:
        teacher: How it is made.
        untrained: The model before its training, with its tokenizer.
        trained: The model after it; does not exist until it is trained.
    """

    teacher: DefaultTeacher
    untrained: Path
    trained: Path

    @property
    def key(self) -> str:
        """A hash of all that determines its weights."""
        return self.trained.parent.name

    @property
    def ready(self) -> bool:
        """Whether the teacher is trained."""
        return self.trained.exists()

    def keep(self, directory: Path) -> None:
        """Copy a trained teacher into the cache; one that another run put there stays."""
        draft = self.trained.with_name(f"{self.trained.name}.{os.getpid()}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(directory, draft)
        try:
            os.replace(draft, self.trained)
        except OSError:
            shutil.rmtree(draft)


def default_teacher_store(
    teacher: DefaultTeacher, data: TaskData, max_length: int
) -> DefaultTeacherStore:
    """Return the store of the teacher, named by all that determines its weights.

    The untrained model is written if it is not there.

    Args:
        teacher: How the teacher is made.
        data: What it is trained on.
        max_length: Longest sequence in tokens.
    """
    content = [data.fingerprint, data.kind, data.classes, max_length]
    content += [
        dict(teacher.training),
        dict(teacher.shape),
        teacher.mask_share,
        gkd_core.__version__,
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "teachers" / key
    store = DefaultTeacherStore(teacher, folder / "untrained", folder / "trained")
    if not store.untrained.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"untrained.{os.getpid()}.tmp"
        teacher.build(draft)
        try:
            os.replace(draft, store.untrained)
        except OSError:
            shutil.rmtree(draft)
    return store
