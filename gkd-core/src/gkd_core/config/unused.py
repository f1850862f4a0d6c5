"""Warnings about settings and stages without effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from gkd_core.config.expression import AVERAGE, parse_expression
from gkd_core.config.graph import link_stages, unused
from gkd_core.config.overlay import SHAPE, Values
from gkd_core.config.schema import task_name
from gkd_core.config.settings import Level, Setting

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import RunConfig
    from gkd_core.plugins import Registry


def unused_tables(
    registry: Registry, parts: list[list[Setting]], stages: tuple[ResolvedStage, ...]
) -> Iterator[str]:
    """Warn about option tables that no stage they apply to uses."""
    used = {stage.name: _used(stage.config) for stage in stages}
    tables = {
        (setting.stage, setting.key[0]): setting
        for part in parts
        for setting in reversed(part)
        if setting.key[0] in registry.options and setting.origin.level >= Level.FILE
    }
    for (stage, method), setting in tables.items():
        names = used[stage] if stage else [name for names in used.values() for name in names]
        if method not in names:
            who = f"stage {stage} does not use" if stage else "no stage uses"
            yield f"[{method}] is set ({setting.origin}), but {who} {method}"


def unused_options(
    place: str,
    known: Collection[str],
    used_by: Callable[[RunConfig], Collection[str]],
    parts: list[list[Setting]],
    stages: tuple[ResolvedStage, ...],
) -> Iterator[str]:
    """Warn about tables of options within another table, such as `optim.muon`, without effect.

    Args:
        place: The table that they are in.
        known: What has options there.
        used_by: Returns which of it a stage uses.
        parts: The settings of the run, and those of each stage.
        stages: The stages.
    """
    used = {stage.name: used_by(stage.config) for stage in stages}
    tables = {
        (setting.stage, setting.key[1]): setting
        for part in parts
        for setting in reversed(part)
        if setting.key[0] == place
        and setting.key[1:2]
        and setting.key[1] in known
        and setting.origin.level >= Level.FILE
    }
    for (stage, name), setting in tables.items():
        names = used[stage] if stage else [name for names in used.values() for name in names]
        if name not in names:
            who = f"stage {stage} does not use" if stage else "no stage uses"
            yield f"[{place}.{name}] is set ({setting.origin}), but {who} {name}"


def _used(config: RunConfig) -> list[str]:
    """Return the methods, combiners and task that a stage uses."""
    expression = parse_expression(config.method)
    named = [*expression.names, *(group.combiner for group in expression.groups)]
    named.append(task_name(config.task))
    return named if len(config.teachers) == 1 else [*named, AVERAGE]


def unused_stages(config: RunConfig, stages: tuple[ResolvedStage, ...]) -> Iterator[str]:
    """Warn about stages whose student is never used."""
    for name in unused(link_stages(config, stages)):
        yield (
            f"no stage uses the student of stage '{name}': none continues with it, and none has "
            f"teacher = 'stage:{name}'"
        )


def unused_shape(run: list[Setting], values: Values) -> Iterator[str]:
    """Warn about student shape settings that a checkpoint of higher precedence overrides."""
    model = values.get(("student", "model"))
    if model is None:
        return
    for setting in run:
        is_shape = setting.key[0] == "student" and setting.key[-1] in SHAPE
        if is_shape and setting.key not in values and setting.origin.level >= Level.FILE:
            yield (
                f"{setting} ({setting.origin}) is ignored: {model} ({model.origin}) starts the "
                "student from its own checkpoint"
            )
