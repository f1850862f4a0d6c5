"""Lifecycle of a stage with `autodisc`: measure importance, judge and write candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.api import (
    ConfigError,
    Slicer,
    Widths,
    count_sliced,
    is_first,
    json_text,
    save_weights,
    write_file,
)

if TYPE_CHECKING:
    from gkd_core.api import StageInfo, Step
    from gkd_methods_multiteacher.autodisc.sandwich import AutoDisc

ASSISTANT = "assistant.safetensors"
"""File with the weights at the best trade-off, in the directory of the stage."""

CANDIDATES = "candidates.json"
"""File with the results of a stage's candidates, in the directory of the stage."""


def begin(method: AutoDisc, stage: StageInfo) -> str | None:
    """Measure importance before the first step; return why a stage has nothing to do."""
    if not method.searches:
        done = "the assistant is as small as the student, which is done"
        return done if _is_default_teacher(stage) else None
    _refuse_divided(stage)
    if method.slicer is None:
        found = stage.measure_importance(method.config.calibration)
        method.slicer = Slicer.of(found, method.config.multiple)
    return None


def judge(method: AutoDisc, stage: StageInfo, step: Step) -> None:
    """Evaluate every candidate, and save the weights if the best trade-off improved."""
    found = {scale: _evaluate(method, stage, scale) for scale in method.config.scales}
    if method.trial.judge(found, stage.higher_is_better, method.choice, step.index + 1):
        save_weights(stage.loaded_student.model, stage.directory / ASSISTANT)


def write_candidates(method: AutoDisc, stage: StageInfo) -> None:
    """Write the results of the candidates."""
    if method.slicer is None or not is_first():
        return
    rows = []
    for scale in method.config.scales:
        widths = method.slicer.widths(scale)
        performance = method.trial.performances[scale]
        rows.append(
            {
                "scale": scale,
                "metric": method.trial.metrics[scale],
                "trade_off": method.choice.trade_off(scale, performance),
                "parameters": count_sliced(stage.loaded_student.sites, widths),
                "widths": widths.as_tree(),
            }
        )
    told = {
        "metric": stage.metric,
        "lambda": method.config.trade_off,
        "target": method.config.target,
        "selected": method.trial.selected,
        "step": method.trial.step,
        "candidates": rows,
    }
    write_file(stage.directory / CANDIDATES, json_text(told, indent=1))


def _evaluate(method: AutoDisc, stage: StageInfo, scale: float) -> float:
    """Return the metric of a candidate."""
    masks = {
        f"student.{site}[{layer}]": mask
        for site, layer, mask in method.masking(scale, stage.student.layers)
    }
    return stage.evaluate_student(masks)[stage.metric]


def _is_default_teacher(stage: StageInfo) -> bool:
    """Whether student and teacher are the same slice."""
    models = [stage.loaded_student, *stage.loaded_teachers]
    widths = [Widths.read(loaded.model.config) for loaded in models]
    return stage.config.student.slice is not None and widths.count(widths[0]) == len(widths)


def _refuse_divided(stage: StageInfo) -> None:
    parallel = stage.config.parallel
    for name, largest in (("zero", 2), ("tensor", 1)):
        value = getattr(parallel, name)
        if value > largest:
            raise ConfigError(
                f"autodisc slices the student, which parallel.{name} = {value} shards over the "
                f"processes; set parallel.{name} = {largest} or less"
            )
