"""The finished stages of all runs: the location of each student, by fingerprint.

The cache stores locations only; a student stays in the directory of the run that trained it. If the
directory is gone or the student has changed, the stage counts as never trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from gkd_core.atomic import draft
from gkd_core.contract.run_info import STAGES
from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.models.content import model_digest
from gkd_core.models.save import copy_model
from gkd_core.runs.fingerprint import StageFingerprint
from gkd_core.runs.result import StageResult
from gkd_core.runs.run_files import DONE, METRICS
from gkd_core.tracking.recorder import copy_entries
from gkd_core.training.checkpoint import BEST
from gkd_core.training.manifest import MANIFEST


@dataclass(frozen=True)
class Finished:
    """A stage that a run has trained.

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
        """File that holds the result of the stage."""
        return Path(self.run) / STAGES / self.stage / DONE


@contextmanager
def alone(fingerprint: StageFingerprint | None, say: Callable[[str], None]) -> Iterator[None]:
    """Train a stage while no other process trains the same; it can be taken over afterwards.

    Args:
        fingerprint: The fingerprint of the stage; None of one that is not reused.
        say: Tells the user what the run waits for.
    """
    lock = None if fingerprint is None else _locked(fingerprint, say)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _locked(fingerprint: StageFingerprint, say: Callable[[str], None]) -> FileLock | None:
    """Lock the entry of a stage; None if the cache cannot be written, which then serves nobody."""
    entry = _entry(fingerprint)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("another run is training this stage; waiting for its student")
            lock.acquire()
    except OSError:
        return None
    return lock


def remember(fingerprint: StageFingerprint, run: Path, result: StageResult) -> None:
    """Record the location of a finished stage's student.

    Args:
        fingerprint: The fingerprint of the stage.
        run: Directory of its run.
        result: The result of the stage.
    """
    student = Path(result.student).resolve()
    entry = Finished(str(run.resolve()), result.name, str(student), model_digest(student))
    write_entry(_entry(fingerprint), asdict(entry))


def recall(fingerprint: StageFingerprint) -> Finished | None:
    """Return the finished stage with a fingerprint, if its student is unchanged."""
    entry = read_entry(_entry(fingerprint), lambda content: Finished(**content))
    if entry is None:
        return None
    try:
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
        target: Directory to copy the student to.

    Returns:
        The result of the stage, or None if it has been removed meanwhile.
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
    """Copy the files that plugins have written beside the student."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in (DONE, BEST, MANIFEST):
            with draft(target / path.name) as aside:
                shutil.copyfile(path, aside)


def _entry(fingerprint: StageFingerprint) -> Path:
    return cache_entry("stages", f"{fingerprint}.json")
