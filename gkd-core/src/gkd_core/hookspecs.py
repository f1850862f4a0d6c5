"""The plugin contract: every hook a gkd plugin may implement, in the order they are called.

A plugin is a module registered under the entry-point group `gkd`; each hook it implements is a
function of the same name marked `@gkd_core.api.hookimpl`. An implementation may take any subset
of the arguments, without defaults. Names that begin with `gkd_` are those of hooks: a function with
such a name that is not marked is refused. Plugins are called in alphabetical order of their
entry-point names.

In a run of several processes each of them calls the hooks, at the same time; `run.say` prints in
the first one only, which is where a plugin should write too (`gkd_core.api.is_first`).

A module may say which version of this contract it is written for, `GKD_API_VERSION = 2`; it is
refused by a gkd with another version.

Registration hooks return classes and files. They are called before the configuration is read, so
import what is heavy inside the function: `gkd --help` must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from gkd_core.contract.combiner import TeacherCombiner
    from gkd_core.contract.launcher import Launcher
    from gkd_core.contract.method import Method
    from gkd_core.contract.optimizer import OptimizerFactory
    from gkd_core.contract.procedure import Procedure
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.contract.run_info import RunInfo, StageInfo
    from gkd_core.contract.sink import Sink
    from gkd_core.contract.step import Step
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.runs.outline import RunOutline
    from gkd_core.teachers.source import AnswerSource

PROJECT = "gkd"

API_VERSION = 2
"""The version of the plugin contract that this gkd implements; gkd 0.1 had version 1."""

RENAMED = {"gkd_check_plan": "gkd_check_outline"}
"""Hooks of earlier versions of the contract, and what they are called now."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""The decorator that marks a function of a plugin as the implementation of a hook."""


@hookspec
def gkd_register_methods() -> Iterable[type[Method]]:
    """Return distillation methods. Called once, when the first method is requested."""


@hookspec
def gkd_register_combiners() -> Iterable[type[TeacherCombiner]]:
    """Return ways to combine the loss terms of several teachers."""


@hookspec
def gkd_register_recipes() -> Iterable[Path | type[Procedure]]:
    """Return recipe files (`NAME.toml`): run files that `gkd run --recipe NAME` starts from.

    Also return the procedures that generate their stages (`procedure.name`).
    """


@hookspec
def gkd_register_sites() -> Iterable[type[Sites]]:
    """Return adapters for architectures whose blocks and attention core does not find by itself."""


@hookspec
def gkd_register_tasks() -> Iterable[type[Task]]:
    """Return sources of data, chosen by `task.name`."""


@hookspec
def gkd_register_teachers() -> Iterable[type[AnswerSource]]:
    """Return sources of teachers' answers besides live models, chosen by `teacher.source.name`."""


@hookspec
def gkd_register_optimizers() -> Iterable[type[OptimizerFactory]]:
    """Return optimizers, chosen by `optim.name`."""


@hookspec
def gkd_register_rollouts() -> Iterable[type[RolloutEngine]]:
    """Return engines that write text during training, chosen by `rollout.engine`."""


@hookspec
def gkd_register_sinks() -> Iterable[type[Sink]]:
    """Return trackers, which record a run, chosen by `tracking.sinks`, or `--track NAME`."""


@hookspec
def gkd_register_launchers() -> Iterable[type[Launcher]]:
    """Return launchers, which start cells, chosen by `--launcher NAME` of `gkd study run`."""


@hookspec
def gkd_register_kinds() -> Iterable[type[TaskKind]]:
    """Return kinds of task, chosen by `task.kind`."""


@hookspec
def gkd_register_commands() -> Iterable[click.Command]:
    """Return commands of `gkd`. Called by every `gkd` command, including `gkd --help`."""


@hookspec
def gkd_check_outline(outline: RunOutline) -> None:
    """Inspect the outline of a run before any weight is loaded; raise a `GkdError` to reject it.

    Args:
        outline: Stages, methods, passes, captured tensors with shape and bytes, weights.
    """


@hookspec
def gkd_stage_start(run: RunInfo, stage: StageInfo) -> None:
    """Act when the models of a stage are built and its first step is about to begin.

    Args:
        run: The run.
        stage: The stage.
    """


@hookspec
def gkd_step_end(run: RunInfo, stage: StageInfo, step: Step, losses: Mapping[str, float]) -> None:
    """Act after an optimizer step whose losses were read for the log (every `log_every` steps).

    Args:
        run: The run.
        stage: The stage.
        step: The step just done.
        losses: Every loss term by name, and `total`.
    """


@hookspec
def gkd_evaluate(run: RunInfo, stage: StageInfo, step: Step, metrics: Mapping[str, float]) -> None:
    """Act after the student was evaluated on the validation rows.

    Args:
        run: The run.
        stage: The stage.
        step: The step just done.
        metrics: Metrics by name.
    """


@hookspec
def gkd_stage_end(run: RunInfo, stage: StageInfo, error: BaseException | None) -> None:
    """Act when a stage is over, even if it failed.

    Args:
        run: The run.
        stage: The stage.
        error: What ended the stage, or None.
    """


@hookspec
def gkd_report(run: RunInfo) -> Iterable[Path] | None:
    """Add files to the report of a finished run, and return them.

    Args:
        run: The run, with its results.
    """
