"""Which stage takes the student of which other: to go on with it, or to learn from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import RunConfig

STAGE = "stage:"
"""What a `model` starts with that is the student of an earlier stage."""


@dataclass(frozen=True)
class Links:
    """What one stage takes from others.

    Attributes:
        start: The stage whose student it goes on with; None if it makes one.
        teachers: The stages whose students it learns from, in the order of its teachers.
    """

    start: str | None
    teachers: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every stage it waits for."""
        return (*self.teachers, *([self.start] if self.start else []))


def stage_of(model: str | None) -> str | None:
    """Return NAME of a model written `stage:NAME`, or None for any other."""
    return model.removeprefix(STAGE) if model is not None and model.startswith(STAGE) else None


def link_stages(run: RunConfig, stages: Sequence[ResolvedStage]) -> dict[str, Links]:
    """Return what each stage takes from others.

    Args:
        run: The configuration of the run.
        stages: Its stages, in order.

    Raises:
        ConfigError: A stage names one that does not exist, or that does not come before it.
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
    """Return the stages whose student no other takes; the last one's is that of the run."""
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
    """Yield the setting and the name of each stage that a stage names."""
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
            f"{what}: a stage cannot wait for itself ({cycle}, each of which takes the student of "
            "the next). Let one of them name another model"
        )
    raise ConfigError(
        f"{what}: that stage comes later. Stages run in the order they are written in; write "
        f"'{name}' before '{stage.name}'"
    )


def _way(start: str, end: str, links: Mapping[str, Links]) -> list[str]:
    """Return the stages from one to another that it waits for, or nothing."""
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
