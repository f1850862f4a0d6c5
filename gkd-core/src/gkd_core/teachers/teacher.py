"""The teachers of a stage: live models, and those whose answers come from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from gkd_core.errors import PluginError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.features import Answer, Features
from gkd_core.plugins.answers import mapping_of, refused

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.step import Step
    from gkd_core.distributed.teacher_batches import TeacherBatches
    from gkd_core.hooks.paths import Capture
    from gkd_core.teachers.source import AnswerSource


class SourcedTeacher:
    """A teacher whose answers come from an `AnswerSource`.

    Attributes:
        source: The source.
        name: Name of the teacher.
    """

    def __init__(self, source: AnswerSource) -> None:
        self.source = source
        self.name = source.teacher.name

    def answer(self, captures: Collection[Capture], batch: Batch, step: Step) -> Features:
        """Return tensors of the teacher for the rows of a micro-batch.

        Args:
            captures: The tensors.
            batch: The micro-batch as the teacher reads it.
            step: The training step.

        Raises:
            PluginError: The source leaves one out, or answers for another number of rows.
        """
        wanted = "a mapping of each capture to a tensor"
        answers = self.source.answer(captures, batch, step)
        found = mapping_of(self.source, "answer", answers, object, wanted)
        for capture in captures:
            if capture not in found:
                raise PluginError(
                    f"the source of answers '{self.source.name}' returned no {capture} of the "
                    f"teacher {self.name!r}, and did not name it as missing"
                )
            self._check_rows(capture, found[capture], len(batch))
        return Features.of({capture: found[capture] for capture in captures})

    def _check_rows(self, capture: Capture, answer: Answer, rows: int) -> None:
        """Reject a tensor for another number of rows: a single one would be broadcast to all."""
        if isinstance(answer, Tensor) and answer.shape[:1] != (rows,):
            did = f"returned {capture} of shape {tuple(answer.shape)} for {rows} rows"
            raise refused(self.source, "answer", did, "the tensor of each row, in their order")


Teacher: TypeAlias = Extractor | SourcedTeacher
"""A teacher of a stage: a live model or another source of its answers."""


def batches_for(teacher: Teacher, batches: TeacherBatches, student: Extractor) -> Sequence[int]:
    """Return the indices of the micro-batches that this rank asks a teacher about.

    Ranks that share a live teacher run it together on the rows of each; a source is asked by each
    rank for its own.
    """
    if isinstance(teacher, SourcedTeacher):
        return [batches.own]
    return batches.of(teacher.model, student.model)
