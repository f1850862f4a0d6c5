"""The baseline of a run: the same student, trained on labels alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.config.schema import TaskConfig, task_name
from gkd_core.errors import ConfigError
from gkd_core.runs.default_method import LABELS, learns_from_labels
from gkd_core.runs.training_cost import training_cost
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved, ResolvedStage
    from gkd_core.runs.spec_builder import SpecBuilder
    from gkd_core.training.stage_spec import StageSpec

AFFORDABLE = 0.5
"""Share of a run's cost that the baseline may add unless the user asks for it."""


def with_baseline(
    resolved: Resolved, built: Mapping[str, StageSpec], builder: SpecBuilder
) -> list[StageSpec]:
    """Return the specs of a run's stages, with that of the baseline if there is to be one.

    Otherwise, the last one notes what the baseline would cost.

    Args:
        resolved: The configuration.
        built: The specs of its stages, by name.
        builder: Builds the baseline's.

    Raises:
        ConfigError: The user asks for a baseline, but the rows have no labels.
    """
    specs = list(built.values())
    last = specs[-1]
    wanted = _wanted(resolved, last)
    if wanted is False or (wanted is None and not _is_comparable(specs, builder)):
        return specs
    *_, first = _course(last)
    # A student built from a model of another kind must be built by the stage of that kind.
    before = None if first.kind == last.kind else first
    baseline = builder.build(_settings(first, last), before, built)
    if wanted is None:
        share = training_cost(baseline) / sum(map(training_cost, specs))
        if share > AFFORDABLE:
            return [*specs[:-1], replace(last, notes=(*last.notes, _note(share)))]
    specs.insert(list(built).index(first.name), baseline)
    return specs


def _wanted(resolved: Resolved, last: StageSpec) -> bool | None:
    """Return whether there is to be a baseline; None if that depends on its cost."""
    wanted = resolved.config.baseline
    if wanted is None and task_name(resolved.stages[-1].config.task) == "embedded":
        wanted = True
    if wanted and last.is_unlabeled(last.data.train):
        raise ConfigError(
            f"baseline = true ({resolved.origin('baseline')}) trains a student on labels alone, "
            f"but {last.data.source} has none. Set baseline = false"
        )
    return wanted


def _is_comparable(specs: Sequence[StageSpec], builder: SpecBuilder) -> bool:
    """Return whether labels alone are another way to train the student of a run."""
    last = specs[-1]
    learns = learns_from_labels(last.data, last.kind, builder.registry)
    return learns and any(spec.reads_teachers for spec in specs)


def _course(spec: StageSpec) -> Iterator[StageSpec]:
    """Yield a stage, the one whose student it continues with, and so on to the student's first."""
    yield spec
    if spec.follows is not None:
        yield from _course(spec.follows)


def _pattern(last: StageSpec) -> StageSpec:
    """Return the stage by which labels alone are trained: the run's own that does so, if any.

    Settings of a last stage that only refines a student would be too weak for it.
    """
    alone = (spec for spec in _course(last) if _learns_alone(spec, last.config.task))
    return next(alone, last)


def _learns_alone(spec: StageSpec, task: TaskConfig) -> bool:
    """Return whether a stage learns from the labels of a task alone."""
    return spec.config.method == LABELS and spec.config.task == task and not spec.is_written


def _note(share: float) -> str:
    return (
        f"the same student on labels alone would add about {share:.0%} to the cost of the run; "
        "train it with --baseline to see what distillation gains"
    )


def _settings(first: StageSpec, last: StageSpec) -> ResolvedStage:
    """Return a stage that trains the first stage's student like its last, but on labels alone."""
    like = _pattern(last)
    own = {
        "task": _settled(last),
        "student": first.config.student,
        "teachers": first.config.teachers,
        "rollout": None,
        "writing": None,
        "probe": None,
    }
    config = like.config.model_copy(update=own)
    alone = replace(like.settings, name=BASELINE, config=config, adjusted=())
    return alone.with_method(LABELS, "the baseline")


def _settled(spec: StageSpec) -> TaskConfig:
    """Return the task of a stage with the kind and the classes that were found for it."""
    task = spec.config.task
    kind = task.kind or spec.kind.name
    classes = spec.data.classes if spec.kind.has_classes else task.classes
    return task.model_copy(update={"kind": kind, "classes": classes})
