"""`replay`: repeats the step at which a run ended because it was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gkd_core.config.resolve import Resolved, resolve
from gkd_core.config.schema import ParallelConfig, RunConfig
from gkd_core.contract.run_info import STAGES
from gkd_core.contract.step import Step
from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.runs.run import Run, prepare_run
from gkd_core.runs.run_files import CONFIG
from gkd_core.tracking.recorder import Recorder
from gkd_core.training.checkpoint import NOT_FINITE
from gkd_core.training.examination import examine
from gkd_core.training.finding import Finding
from gkd_core.training.keeping import keep_answers
from gkd_core.training.saved_step import SavedStep


@dataclass(frozen=True)
class Replay:
    """A step that was repeated.

    Attributes:
        saved: The step as it was saved.
        losses: Its losses now.
        gradient_norm: The norm of its gradient now.
        found: What is not finite first; None if all is.
    """

    saved: SavedStep
    losses: Mapping[str, Tensor]
    gradient_norm: Tensor
    found: Finding | None

    @property
    def differences(self) -> list[str]:
        """The values that differ in any bit; the norm is compared only if one process ran."""
        pairs = {name: (was, self.losses.get(name)) for name, was in self.saved.losses.items()}
        if self.saved.processes == 1:
            pairs["gradient norm"] = self.saved.gradient_norm, self.gradient_norm
        return [name for name, pair in pairs.items() if not _equal(*pair)]


def replay(directory: Path, registry: Registry, rank: int) -> Replay:
    """Repeat the saved step of a run in this process, with whole models.

    Args:
        directory: The run.
        registry: The plugins.
        rank: The share of the rows, if several processes divided them.

    Raises:
        GkdError: There is no saved step, or what it needs is gone.
    """
    folder, suffix = _folder(directory), f"-{rank}" if rank else ""
    if not (folder / f"step{suffix}.json").exists():
        raise ConfigError(f"--rank {rank}: {folder} holds no share of the step with that number")
    saved = SavedStep.load(folder, suffix)
    resolved = _alone(resolve(registry, files=[directory / CONFIG]))
    run = Run(resolved, registry, prepare_run(resolved, registry), directory, Recorder([]))
    spec = next((spec for spec in run.specs if spec.name == saved.stage), None)
    if spec is None:
        raise ConfigError(f"{directory / CONFIG} no longer has the stage '{saved.stage}'")
    stage = run.build(spec)
    saved.restore(stage, folder)
    run.hooks.methods_start(stage)
    stage.kept = keep_answers(stage, saved.kept, run.recorder.say)
    saved.restore(stage, folder)
    stage.student.model.train()
    step = Step(saved.index, saved.total, saved.epoch, saved.stage, torch.default_generator)
    found, losses = examine(stage, saved.batches, step, saved.counts, backward=True)
    stage.engine.note_loss(losses["total"])
    return Replay(saved, losses, stage.engine.step(step.index), found)


def _folder(directory: Path) -> Path:
    """Return the directory of the saved step of a run."""
    if not (directory / CONFIG).exists():
        raise ConfigError(f"{directory} is not a run directory: it has no {CONFIG}")
    found = sorted((directory / STAGES).glob(f"*/{NOT_FINITE}"))
    if not found:
        raise ConfigError(
            f"{directory} holds no step to repeat: one is saved when a run ends because a loss or "
            "a gradient is not finite"
        )
    return found[-1]


def _alone(resolved: Resolved) -> Resolved:
    """Return a configuration for one process, which holds all models."""
    stages = (replace(stage, config=_whole(stage.config)) for stage in resolved.stages)
    return replace(resolved, config=_whole(resolved.config), stages=tuple(stages))


def _whole(config: RunConfig) -> RunConfig:
    alone = {"tensor": 1, "placement": "replicated"}
    update = {
        "parallel": ParallelConfig(device=config.parallel.device),
        "teachers": [teacher.model_copy(update=alone) for teacher in config.teachers],
    }
    return config.model_copy(update=update)


def _equal(was: Tensor, now: Tensor | None) -> bool:
    """Return whether two losses are the same bits, or both nan."""
    if now is None:
        return False
    was, now = was.cpu(), now.cpu()
    return bool(was.isnan() & now.isnan()) or torch.equal(was, now)
