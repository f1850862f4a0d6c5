"""Finished stages of all runs: by key, where the student is that came of each.

The cache holds no student, only where one is: in the directory of the run that trained it. A
directory that is gone, or whose student was changed, counts as never trained.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gkd_core.data.cache import cache_dir
from gkd_core.models.save import copy_model
from gkd_core.runs.directory import DONE, STAGES
from gkd_core.runs.fingerprint import StageKey, model_digest
from gkd_core.runs.result import StageResult
from gkd_core.tracking.recorder import METRICS, copy_entries
from gkd_core.training.checkpoint import BEST


@dataclass(frozen=True)
class Finished:
    """A stage that some run has trained.

    Attributes:
        run: Directory of the run.
        stage: Name of the stage.
        student: Directory of its student.
        content: Hash of the student.
    """

    run: str
    stage: str
    student: str
    content: str

    @property
    def done(self) -> Path:
        """Where it is told how the stage ended."""
        return Path(self.run) / STAGES / self.stage / DONE


def remember(key: StageKey, run: Path, result: StageResult) -> None:
    """Note where the student of a finished stage is.

    Args:
        key: The key of the stage.
        run: Directory of its run.
        result: How it ended.
    """
    student = Path(result.student).resolve()
    entry = Finished(str(run.resolve()), result.name, str(student), model_digest(student))
    path = _entry(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(asdict(entry), indent=1))
    os.replace(draft, path)


def recall(key: StageKey) -> Finished | None:
    """Return the stage of a key that a run has finished, if its student is still as it was."""
    try:
        entry = Finished(**json.loads(_entry(key).read_text()))
        there = StageResult.load(entry.done).key == key
        same = model_digest(Path(entry.student)) == entry.content
    except (OSError, ValueError, TypeError):
        return None
    return entry if there and same else None


def take_over(entry: Finished, run: Path, target: Path) -> StageResult | None:
    """Copy a finished stage into another run.

    Args:
        entry: The stage.
        run: Directory of the run.
        target: Where the student is to be.

    Returns:
        How it ended, or None if it was removed meanwhile.
    """
    try:
        result = StageResult.load(entry.done)
        copy_model(Path(entry.student), target)
        copy_entries(Path(entry.run) / METRICS, run / METRICS, entry.stage)
        _copy_files(entry.done.parent, run / STAGES / entry.stage)
    except OSError:
        return None
    return replace(result, student=str(target), reused=result.reused or entry.run)


def _copy_files(source: Path, target: Path) -> None:
    """Copy what plugins have written beside the student."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in (DONE, BEST):
            draft = target / f"{path.name}.tmp"
            shutil.copyfile(path, draft)
            os.replace(draft, target / path.name)


def _entry(key: StageKey) -> Path:
    return cache_dir() / "stages" / f"{key}.json"
