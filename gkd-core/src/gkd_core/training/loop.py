"""The training loop of one stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from gkd_core.contract.batch import Batch
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.data.prefetch import ahead
from gkd_core.distributed.ranks import any_rank, wait, world_size
from gkd_core.evaluation.evaluate import Predict, evaluate
from gkd_core.objective.passes import evaluation_changes
from gkd_core.stop_signals import patience, requested, stop
from gkd_core.training.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from gkd_core.training.keeping import check_stored, keep_answers, teachers_to_keep
from gkd_core.training.non_finite import NonFiniteGuard
from gkd_core.training.poor_language_model import poor_language_model
from gkd_core.training.step import StepResult, train_step

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import Evaluation
    from gkd_core.tracking.recorder import Recorder
    from gkd_core.training.plugin_hooks import PluginHooks
    from gkd_core.training.stage import Stage


def train(stage: Stage, recorder: Recorder, hooks: PluginHooks) -> Progress:
    """Train the student of a stage, resuming from the newest whole checkpoint.

    Args:
        stage: The stage.
        recorder: Where progress is recorded.
        hooks: Notifies methods and plugins; a method may ask to skip the stage.

    Returns:
        The progress. The student holds the best weights (`training.keep_best`) or the last ones.

    Raises:
        GkdError: The loss or the gradient is not finite, or overflowed in every step.
        KeyboardInterrupt: A signal asked a rank to stop; a checkpoint has been saved.
    """
    progress = load_checkpoint(stage, recorder.say)
    recorder.start_stage(stage.name, stage.total_steps, progress.step)
    if stage.probes is not None:
        stage.probes.file.start(progress.step)
    skipped = hooks.stage_start(stage)
    stage.student.model.train()
    hooks.resume(stage, _step(stage, progress.step - 1), progress.untold)
    begun = time.perf_counter() - progress.seconds
    if not skipped:
        if progress.step == 0:
            progress.kept = teachers_to_keep(stage)
            progress.start = _value_at_start(stage)
        if progress.step < stage.total_steps:
            check_stored(stage)
            stage.kept = keep_answers(stage, progress.kept, recorder.say)
            progress.kept = stage.kept_teachers
        with patience():
            _take_steps(stage, progress, begun, recorder, hooks)
    if stage.config.training.keep_best and progress.best is not None:
        load_weights(stage.student.model, stage.best)
    if stage.probes is not None:
        stage.probes.measure_validation(stage, _step(stage, progress.step - 1), recorder)
    stage.student.model.eval()
    if skipped and progress.best is None:
        progress.best = _value_of(stage)
    progress.seconds = time.perf_counter() - begun
    for warning in poor_language_model(stage, progress):
        recorder.say(warning)
    return progress


def _value_at_start(stage: Stage) -> float | None:
    """Return the main metric of a language model that is not trained yet; None of others.

    Copies of a teacher's blocks may be worse than a guess, and a few steps may not mend them.
    """
    return _value_of(stage) if stage.spec.kind.is_lm else None


def _value_of(stage: Stage) -> float:
    """Return the main metric of the student as it is."""
    found = _evaluated(stage, lambda batch: stage.student.predict(batch.inputs))
    return found.metrics[stage.metric.name]


def _take_steps(
    stage: Stage, progress: Progress, begun: float, recorder: Recorder, hooks: PluginHooks
) -> None:
    """Take the remaining steps; a signal ends them after a checkpoint.

    Args:
        stage: The stage.
        progress: How far it has come.
        begun: When it would have begun without interruption.
        recorder: Where progress is recorded.
        hooks: Notifies methods and plugins.
    """
    guard, meter = NonFiniteGuard(stage), _Meter()
    for step, batches in _steps(stage, progress):
        if stage.probes is not None and stage.probes.due(step):
            with meter.paused():
                stage.probes.measure(stage, batches[0], step, recorder)
        result = _take_step(stage, batches, step, progress, guard)
        stage.check_lease()
        progress.step += 1
        progress.seconds = time.perf_counter() - begun
        guard.add(step, result)
        meter.add(result.samples)
        if stage.due(progress.step, stage.config.training.log_every):
            guard.check()
            _log(stage, step, result, meter.read(), recorder, hooks)
        if stage.due(progress.step, stage.evaluate_every):
            guard.check()
            with meter.paused():
                _evaluate(stage, step, progress, recorder, hooks)
        stops = any_rank(requested())
        due = stage.due(progress.step, stage.checkpoint_every)
        if due or stops or progress.stopped or hooks.failed:
            guard.check()
            progress.untold = hooks.untold
            with meter.paused():
                save_checkpoint(stage, progress)
        hooks.raise_failure()
        if stops:
            wait()  # until the first rank has renamed the checkpoint
            stop(f"after step {progress.step} of stage {stage.name}")
    guard.end(progress.step)


def _steps(stage: Stage, progress: Progress) -> Iterator[tuple[Step, Sequence[Batch]]]:
    """Yield the remaining steps, until early stopping ends the stage."""
    batches = iterate(
        stage.train,
        stage.collator,
        stage.sampler,
        progress.step,
        stage.total_steps,
        stage.readings,
    )
    with closing(ahead(batches) if _prefetches(stage) else batches) as made:
        while not progress.stopped and progress.step < stage.total_steps:
            _, micro_batches = next(made)
            yield _step(stage, progress.step), micro_batches


def _prefetches(stage: Stage) -> bool:
    """Return whether batches are made while the device computes; a CPU does both anyway."""
    return stage.engine.device.type != "cpu"


def _take_step(
    stage: Stage, batches: Sequence[Batch], step: Step, progress: Progress, guard: NonFiniteGuard
) -> StepResult:
    """Run a step; if it fails, save a checkpoint of the steps before it."""
    try:
        return train_step(stage, batches, step)
    except Exception:
        if progress.step > 0 and _undo(stage):
            guard.check()
            save_checkpoint(stage, progress)
        raise


def _undo(stage: Stage) -> bool:
    """Bring a stage back to the start of a step that failed; return whether that is possible.

    It is not if the step has changed weights or, in place, the state of a method, if the state of a
    rollout engine has advanced, or if other ranks still compute it.
    """
    start = stage.begun
    if start is None or stage.rollouts is not None or world_size() > 1:
        return False
    start.restore(stage)
    return all(state.is_whole for state in start.kept.values())


def _step(stage: Stage, index: int) -> Step:
    epoch = index // stage.sampler.steps_per_epoch
    return Step(index, stage.total_steps, epoch, stage.name, torch.default_generator)


def _log(
    stage: Stage,
    step: Step,
    result: StepResult,
    samples_per_second: float,
    recorder: Recorder,
    hooks: PluginHooks,
) -> None:
    losses = result.read()
    recorder.log_step(
        step,
        losses,
        lr=stage.engine.lr(step.index),
        gradient_norm=float(result.gradient_norm),
        samples_per_second=samples_per_second,
        scaling=None if stage.engine.scale is None else stage.engine.scale.read(),
        written=None if stage.rollouts is None else stage.rollouts.tally.read(),
    )
    hooks.step_end(stage, step, losses)


def _evaluate(
    stage: Stage, step: Step, progress: Progress, recorder: Recorder, hooks: PluginHooks
) -> None:
    found = _evaluated(
        stage,
        lambda batch: stage.student.predict(
            batch.inputs,
            evaluation_changes(stage.objective.members, stage.student, stage.teachers, batch, step),
        ),
    )
    value = progress.last = found.metrics[stage.metric.name]
    if stage.metric.better(value, progress.best):
        progress.best, progress.best_step, progress.waited = value, progress.step, 0
        if stage.config.training.keep_best:
            save_weights(stage.student.model, stage.best)
    else:
        progress.waited += 1
        patience = stage.config.training.patience
        progress.stopped = patience is not None and progress.waited >= patience
    if stage.rollouts is not None:
        stage.rollouts.replay.note_loss(found.metrics["loss"])
    written = {} if stage.samples is None else stage.samples.write(stage, recorder.say)
    metrics = {**found.metrics, **written}
    recorder.log_evaluation(step, metrics)
    hooks.evaluate(stage, step, metrics)


def _evaluated(stage: Stage, predict: Predict) -> Evaluation:
    model, rows, device = stage.student.model, stage.validation, stage.engine.device
    found = evaluate(model, rows, stage.collator, stage.kind, device, predict)
    return stage.spec.measured(found, stage.spec.data.validation)


class _Meter:
    """Training throughput since the last read, in samples per second."""

    def __init__(self) -> None:
        self.samples = 0
        self.since = time.perf_counter()

    def add(self, samples: int) -> None:
        self.samples += samples

    def read(self) -> float:
        now = time.perf_counter()
        rate = self.samples / max(now - self.since, 1e-9)
        self.samples, self.since = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in this context."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun
