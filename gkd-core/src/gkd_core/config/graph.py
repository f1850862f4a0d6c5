"""The stage graph: which students a stage continues with or learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import RunConfig

STAGE = "stage:"
"""Prefix of a `model` that is the student of an earlier stage."""


@dataclass(frozen=True)
class Links:
    """The links from one stage to others.

    Attributes:
        start: The stage whose student it continues with; None if it creates one.
        teachers: The stages whose students are its teachers, in order.
    """

    start: str | None
    teachers: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """All stages that it depends on."""
        return (*self.teachers, *([self.start] if self.start else []))


def stage_of(model: str | None) -> str | None:
    """Return NAME if a model is given as `stage:NAME`, else None."""
    return model.removeprefix(STAGE) if model is not None and model.startswith(STAGE) else None


def link_stages(run: RunConfig, stages: Sequence[ResolvedStage]) -> dict[str, Links]:
    """Return the links of each stage, by name.

    Args:
        run: The configuration of the run.
        stages: Its stages, in order.

    Raises:
        ConfigError: A stage names a stage that does not exist or does not come before it.
    """
    links: dict[str, Links] = {}
    before: ResolvedStage | None = None
    for stage in stages:
        teachers = tuple(filter(None, (stage_of(t.model) for t in stage.config.teachers)))
        links[stage.name] = Links(_start(stage, before, run, teachers), teachers)
        before = stage
    for stage in stages:
        for setting, name in _references(stage):
            _check(stage, setting, name, links)
    return links


def unused(links: Mapping[str, Links]) -> list[str]:
    """Return the stages whose student no other stage uses, except the last, the run's result."""
    used = {name for link in links.values() for name in link.all}
    return [name for name in list(links)[:-1] if name not in used]


def _start(
    stage: ResolvedStage, before: ResolvedStage | None, run: RunConfig, teachers: Sequence[str]
) -> str | None:
    student = stage.config.student
    named = stage_of(student.model)
    if named is not None or before is None or student.new_student:
        return named
    own = student not in (before.config.student, run.student) or before.name in teachers
    return None if own and student.new_student is None else before.name


def _references(stage: ResolvedStage) -> Iterator[tuple[str, str]]:
    """Yield the key and the name for each reference of a stage to another."""
    teachers = stage.config.teachers
    for teacher in teachers:
        name = stage_of(teacher.model)
        if name is not None:
            yield f"teachers.{teacher.name}.model" if len(teachers) > 1 else "teacher.model", name
    name = stage_of(stage.config.student.model)
    if name is not None:
        yield "student.model", name


def _check(stage: ResolvedStage, setting: str, name: str, links: Mapping[str, Links]) -> None:
    what = f"{stage.path(setting)} = '{STAGE}{name}'"
    order = list(links)
    if name not in links:
        raise ConfigError(f"{what}: there is no stage '{name}'.{suggest(name, order)}")
    if order.index(name) < order.index(stage.name):
        return
    way = _way(name, stage.name, links)
    if way:
        cycle = " -> ".join([stage.name, *way])
        raise ConfigError(
            f"{what}: a stage cannot depend on itself ({cycle}, each of which uses the student of "
            "the next). Name another model in one of them"
        )
    raise ConfigError(
        f"{what}: that stage comes later. Stages run in the order written; move "
        f"'{name}' before '{stage.name}'"
    )


def _way(start: str, end: str, links: Mapping[str, Links]) -> list[str]:
    """Return a dependency path from one stage to another, or an empty list."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop()
        if way[-1] == end:
            return way
        for name in links[way[-1]].all:
            if name in links and name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []
