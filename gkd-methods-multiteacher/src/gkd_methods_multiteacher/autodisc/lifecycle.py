"""Lifecycle of a stage with `autodisc`: measure importance, judge and write candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gkd_core.api import (
    Capture,
    ConfigError,
    Slicer,
    Widths,
    count_sliced,
    is_first,
    measure_importance,
    write_file,
)
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.hooks.forward import Change
from gkd_core.training.calibration import calibration_batches
from gkd_core.training.checkpoint import save_weights
from gkd_methods_multiteacher.autodisc.sandwich import ASSISTANT, WHOLE, AutoDisc

if TYPE_CHECKING:
    from gkd_core.api import RunInfo, RunOutline, Step
    from gkd_core.training.stage import Stage

CANDIDATES = "candidates.json"
"""File with the results of a stage's candidates, in the directory of the stage."""


def check(outline: RunOutline) -> None:
    """Reject a search for candidates within a student that is itself a slice.

    Raises:
        ConfigError: A stage searches within a slice.
    """
    for stage in outline.stages:
        for method in stage.methods:
            if method.name != AutoDisc.name or stage.scale is None:
                continue
            scales = method.options["scales"]
            if scales.value != [WHOLE]:
                raise ConfigError(
                    f"autodisc.scales = {scales.value} ({scales.origin}) would make stage "
                    f"'{stage.name}' search for an assistant again, among slices of its student, "
                    f"which is itself a slice (student.scale = {stage.scale:g}). Name the stage "
                    "that searches: stages.assistants.autodisc.scales in the recipe autodisc"
                )


def begin(run: RunInfo, stage: Stage) -> None:
    """Measure importance before the first step; skip a stage that has nothing to do."""
    for method in _methods(stage):
        if method.searches:
            _refuse_divided(stage)
            if method.slicer is None:
                batches = calibration_batches(stage.spec, method.config.calibration)
                found = measure_importance(stage.student, batches, stage.engine.device)
                method.slicer = Slicer.of(found, method.config.multiple)
        elif _is_default_teacher(stage):
            run.say(f"stage {stage.name}: the assistant is as small as the student, which is done")
            stage.total_steps = 0


def judge(stage: Stage, step: Step) -> None:
    """Evaluate every candidate, and save the weights if the best trade-off improved."""
    for method in _methods(stage):
        if not method.searches:
            continue
        metric = stage.metric
        found = {scale: _evaluate(stage, method, scale) for scale in method.config.scales}
        better = method.trial.judge(found, metric.higher_is_better, method.choice, step.index + 1)
        if better:
            save_weights(stage.student.model, stage.directory / ASSISTANT)


def write_candidates(stage: Stage) -> None:
    """Write the results of the candidates."""
    for method in _methods(stage):
        if method.searches and method.slicer is not None and is_first():
            rows = []
            for scale in method.config.scales:
                widths = method.slicer.widths(scale)
                performance = method.trial.performances[scale]
                rows.append(
                    {
                        "scale": scale,
                        "metric": method.trial.metrics[scale],
                        "trade_off": method.choice.trade_off(scale, performance),
                        "parameters": count_sliced(stage.student.sites, widths),
                        "widths": widths.as_tree(),
                    }
                )
            told = {
                "metric": stage.metric.name,
                "lambda": method.config.trade_off,
                "target": method.config.target,
                "selected": method.trial.selected,
                "step": method.trial.step,
                "candidates": rows,
            }
            write_file(stage.directory / CANDIDATES, json.dumps(told, indent=1))


def _methods(stage: Stage) -> Iterator[AutoDisc]:
    for member in stage.objective.members:
        for method in member.methods:
            if isinstance(method, AutoDisc):
                yield method


def _evaluate(stage: Stage, method: AutoDisc, scale: float) -> float:
    layers = len(stage.student.sites.blocks)
    changes = [
        Change(Capture(site, layer), by) for site, layer, by in method.masking(scale, layers)
    ]
    found = evaluate(
        stage.student.model,
        stage.validation,
        stage.collator,
        stage.kind,
        stage.engine.device,
        lambda batch: stage.student.predict(batch.inputs, changes),
    )
    return found.metrics[stage.metric.name]


def _is_default_teacher(stage: Stage) -> bool:
    """Whether student and teacher are the same slice."""
    models = [stage.student.model, *(teacher.model for teacher in stage.live_teachers)]
    widths = [Widths.read(model.config) for model in models]
    return stage.config.student.scale is not None and widths.count(widths[0]) == len(widths)


def _refuse_divided(stage: Stage) -> None:
    parallel = stage.config.parallel
    for name, largest in (("zero", 2), ("tensor", 1)):
        value = getattr(parallel, name)
        if value > largest:
            raise ConfigError(
                f"autodisc slices the student, which parallel.{name} = {value} shards over the "
                f"processes; set parallel.{name} = {largest} or less"
            )
