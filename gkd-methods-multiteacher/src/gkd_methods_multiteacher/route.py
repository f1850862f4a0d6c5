"""`route`: each row has the teacher that its source names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import Batch, MethodError, Step, TeacherCombiner, View

NONE = "none"
"""Stands for no teacher."""


class Route(TeacherCombiner):
    """Let each row learn from one teacher: the one that its source names.

    L = sum_i [route(source) = i] L_i for each row. The source is the value of the column
    `task.source`, or the name of the row's data in a mixture; `route.teachers` says which teacher
    it stands for, unless it is a teacher's name. Rows of a source whose teacher is `none` learn
    only from the terms outside of the parentheses.
    """

    name = "route"
    paper = "Ma, Wei, Zhao et al., 2026, arXiv:2606.30406"
    kinds = (
        *TeacherCombiner.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "embedding",
    )

    class Config(TeacherCombiner.Config):
        """Options of `route`."""

        teachers: Mapping[str, str] = Field(
            {},
            description="Name of the teacher by source, or `none`; sources that are not here are "
            "names of teachers.",
        )

    config: Config

    def check(self) -> None:
        """Reject rows without sources, and sources and teachers without each other."""
        teachers = [self._name(number) for number in range(len(self.models))]
        sources = self._sources
        if not sources:
            raise MethodError(
                "route chooses the teacher by the source of a row, which these rows do not have. "
                "Name the column that has it (task.source), or mix data (--data code.jsonl:0.5 "
                "--data math.jsonl:0.5)"
            )
        if unread := sorted({*self.config.teachers} - {*sources}):
            raise MethodError(
                f"route.teachers names the source {unread[0]!r}, but the rows are from "
                f"{', '.join(sources)}"
            )
        for source in sources:
            if self._teacher_of(source) not in (*teachers, NONE):
                raise MethodError(
                    f"rows are from the source {source!r}, which is not the name of a teacher; "
                    f"there are {', '.join(teachers)}. Set route.teachers.{source}={teachers[0]}, "
                    f"or to {NONE} for rows without a teacher"
                )
        if idle := sorted({*teachers} - {*map(self._teacher_of, sources)}):
            raise MethodError(f"route assigns no row to the teacher {idle[0]!r}. Remove it")

    def weight(
        self, number: int, student: View, teacher: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return 1 for the rows of the teacher, 0 for others, `[B]`."""
        if batch.data_sources is None:  # rows that only stand for others, in a plan
            return 1 / len(self.models)
        name = self._name(number)
        own = [i for i, source in enumerate(self._sources) if self._teacher_of(source) == name]
        return torch.isin(batch.data_sources, batch.data_sources.new_tensor(own)).float()

    def _name(self, number: int) -> str:
        _, teacher = self.models[number].pair
        return teacher.name

    @property
    def _sources(self) -> tuple[str, ...]:
        return self.models[0].data.sources

    def _teacher_of(self, source: str) -> str:
        return self.config.teachers.get(source, source)
