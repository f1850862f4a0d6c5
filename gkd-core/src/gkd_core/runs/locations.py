"""`Locations`: where a run keeps the students of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gkd_core.contract.run_info import STAGES
from gkd_core.runs.run_files import DONE
from gkd_core.training.stage_spec import BASELINE, StageSpec, TeacherSpec


@dataclass(frozen=True)
class Locations:
    """The locations of the students of a run.

    Attributes:
        directory: The directory of the run.
        specs: Its stages in order.
    """

    directory: Path
    specs: Sequence[StageSpec]

    def folder(self, spec: StageSpec) -> Path:
        """Return the directory of a stage."""
        return self.directory / STAGES / spec.name

    def is_finished(self, spec: StageSpec) -> bool:
        """Whether a stage is finished."""
        return (self.folder(spec) / DONE).exists()

    @property
    def final(self) -> Path:
        """The directory of the final student."""
        return self.directory / "student"

    def student(self, spec: StageSpec) -> Path:
        """Return the directory to which a stage's student is written."""
        if spec.name == self.specs[-1].name:
            return self.final
        if spec.name == BASELINE:
            return self.directory / BASELINE
        return self.folder(spec) / "student"

    def start(self, spec: StageSpec) -> Path | None:
        """Return the student with which a stage continues; None if it starts another way."""
        if spec.follows is None or spec.name == BASELINE:
            return None
        return self.student(spec.follows)

    def ready(self, spec: StageSpec) -> StageSpec:
        """Return a spec with the directories of all teachers that earlier stages have trained."""
        return replace(
            spec,
            teachers=tuple(self.teacher(teacher) for teacher in spec.teachers),
            follows=None if spec.follows is None else self.ready(spec.follows),
        )

    def teacher(self, teacher: TeacherSpec) -> TeacherSpec:
        """Return a teacher with the directory that its finished stage has written."""
        if teacher.stage is not None:
            return replace(teacher, model=str(self.student(teacher.stage)))
        store = teacher.store
        if store is None or store.ready:
            return teacher
        # Only what is trained without interruption, or goes on unchanged, serves other runs too.
        trained = (
            s for s in self.specs if s.store is not None and s.store.trained == store.trained
        )
        return next(
            (replace(teacher, model=str(self.student(s)), store=None) for s in trained), teacher
        )
