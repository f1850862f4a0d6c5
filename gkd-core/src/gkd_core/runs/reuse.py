"""Finished stages of all runs: where the student of each is, by the fingerprint of the stage.

The cache holds no student, only where one is: in the directory of the run that trained it. A
directory that is gone, or whose student was changed, counts as never trained.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gkd_core.atomic import draft, write_file
from gkd_core.data.cache import cache_dir
from gkd_core.models.save import copy_model
from gkd_core.runs.directory import DONE, STAGES
from gkd_core.runs.fingerprint import StageFingerprint, model_digest
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


def remember(fingerprint: StageFingerprint, run: Path, result: StageResult) -> None:
    """Note where the student of a finished stage is.

    Args:
        fingerprint: The fingerprint of the stage.
        run: Directory of its run.
        result: How it ended.
    """
    student = Path(result.student).resolve()
    entry = Finished(str(run.resolve()), result.name, str(student), model_digest(student))
    write_file(_entry(fingerprint), json.dumps(asdict(entry), indent=1))


def recall(fingerprint: StageFingerprint) -> Finished | None:
    """Return the finished stage with a fingerprint, if its student is still as it was."""
    try:
        entry = Finished(**json.loads(_entry(fingerprint).read_text()))
        there = StageResult.load(entry.done).fingerprint == fingerprint
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
            with draft(target / path.name) as aside:
                shutil.copyfile(path, aside)


def _entry(fingerprint: StageFingerprint) -> Path:
    return cache_dir() / "stages" / f"{fingerprint}.json"
