"""Defaults that depend on the rows of a run: unset options of methods, and the baseline.

A method that is not set learns from labels, too, where rows have some. Options of methods may have
other defaults for some kinds of task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.config.schema import task_name
from gkd_core.config.settings import Level, Origin
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved, ResolvedStage
    from gkd_core.contract.task import TaskData
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

LABELS = "hard"
"""The method that learns from labels alone."""


def with_labels(
    settings: ResolvedStage, data: TaskData, kind: TaskKind, registry: Registry
) -> ResolvedStage:
    """Return the settings of a stage; if its method is the default, with the term of the labels.

    Without a term of labels, a student of a weak teacher can be far worse than one that has no
    teacher.

    Args:
        settings: The configuration of the stage.
        data: Its rows.
        kind: Their kind.
        registry: The plugins.
    """
    if "method" in settings.origins or not learns_from_labels(data, kind, registry):
        return settings
    return settings.with_method(
        f"{settings.config.method}+{LABELS}", "default for rows with labels"
    )


def with_kind_defaults(
    settings: ResolvedStage, kind: TaskKind, registry: Registry
) -> ResolvedStage:
    """Return the settings of a stage with the defaults that its methods have for its kind.

    Args:
        settings: The configuration of the stage.
        kind: The kind of its task.
        registry: The plugins.
    """
    options, origins = dict(settings.config.options), dict(settings.origins)
    for name in options.keys() & registry.methods.keys():
        for other, defaults in registry.methods[name].kind_defaults.items():
            own = {n: v for n, v in defaults.items() if f"{name}.{n}" not in settings.origins}
            if not own or not kind.counts_as([other]):
                continue
            read = type(options[name])(**own)
            options[name] = options[name].model_copy(update={n: getattr(read, n) for n in own})
            origins |= {f"{name}.{n}": Origin(Level.DEFAULT, f"default for {other}") for n in own}
    config = settings.config.model_copy(update={"options": options})
    return replace(settings, config=config, origins=origins)


def learns_from_labels(data: TaskData, kind: TaskKind, registry: Registry) -> bool:
    """Return whether rows have labels that a student can learn from alone; text has none."""
    if kind.is_lm or data.train.labels is None:
        return False
    return kind.counts_as(registry.method(LABELS).kinds)


def as_built(resolved: Resolved, specs: Sequence[StageSpec]) -> Resolved:
    """Return the configuration of a run with what its specs have settled.

    That is the method of each stage and whether there is a baseline, so that a resumed run does not
    decide again.

    Args:
        resolved: The configuration.
        specs: The specs of its stages, and of others that gkd adds.
    """
    built = {spec.name: spec.settings for spec in specs}
    stages = tuple(
        replace(
            stage,
            config=stage.config.model_copy(
                update={
                    "method": built[stage.name].config.method,
                    "options": built[stage.name].config.options,
                }
            ),
            origins=built[stage.name].origins,
        )
        for stage in resolved.stages
    )
    settled = replace(resolved, stages=stages)
    if not resolved.config.stages:
        (only,) = stages
        settled = replace(settled, config=only.config, origins=only.origins)
    return settled if resolved.config.baseline is not None else _with(settled, BASELINE in built)


def as_begun_before(resolved: Resolved) -> Resolved:
    """Return the configuration of a run that goes on: earlier versions settled no baseline."""
    if resolved.config.baseline is not None:
        return resolved
    return _with(resolved, task_name(resolved.stages[-1].config.task) == "embedded")


def _with(resolved: Resolved, baseline: bool) -> Resolved:
    config = resolved.config.model_copy(update={"baseline": baseline})
    return replace(resolved, config=config)
