"""`SavedStep`: a step that was not finite, saved so that `gkd replay` can repeat it.

A stage has at most one. It takes the size of the trained weights and of a batch: there is no state
of an optimizer in it, and nothing of the teachers. Tensors are in safetensors files, the rest is
JSON; the directory is complete when it has its name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gkd_core.atomic import replace_directory
from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.step import Step
from gkd_core.distributed.groups import is_first_of_copy
from gkd_core.distributed.ranks import is_first, wait, world_size
from gkd_core.strict_json import json_text
from gkd_core.training.checkpoint import (
    NOT_FINITE,
    load_weights,
    rank_suffix,
    save_tensors,
    save_weights,
)
from gkd_core.training.method_state import put_tensors, take_tensors
from gkd_core.training.random_states import restore_random
from gkd_core.training.step import StepResult

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage

STUDENT, MODULES = "student.safetensors", "modules.safetensors"


@dataclass(frozen=True)
class SavedStep:
    """A step that was not finite, as one rank computed it.

    Attributes:
        stage: Name of the stage.
        index: Steps done before it.
        total: Steps of the stage.
        epoch: Passes over the rows done before it.
        processes: Number of processes of the run.
        torch: Version of PyTorch.
        device: Device of the models.
        counts: Number of items in it, over all ranks.
        losses: This rank's share of its losses.
        gradient_norm: Norm of its gradient before clipping, over all ranks.
        loss_scale: State of the loss scale before it; empty without one.
        random: States of the generators before it.
        methods: State of the methods before it.
        inexact: Methods whose saved state is that after the step, because they changed it in place.
        batches: Its micro-batches, with the text that models wrote.
        kept: Names of the teachers whose answers were kept.
    """

    stage: str
    index: int
    total: int
    epoch: int
    processes: int
    torch: str
    device: str
    counts: Mapping[ItemKind, int]
    losses: Mapping[str, Tensor]
    gradient_norm: Tensor
    loss_scale: Mapping[str, float]
    random: Mapping[str, Tensor]
    methods: Mapping[str, Any]
    inexact: Sequence[str]
    batches: Sequence[Batch]
    kept: Sequence[str] = ()

    @classmethod
    def of(cls, stage: Stage, step: Step, result: StepResult) -> SavedStep:
        """Return a step that has just been computed; every rank calls it.

        The methods are brought back to the state that they had before it.
        """
        start = result.start
        inexact = [name for name, state in start.kept.items() if not state.is_whole]
        start.restore(stage)
        return cls(
            stage=stage.name,
            index=step.index,
            total=step.total,
            epoch=step.epoch,
            processes=world_size(),
            torch=torch.__version__,
            device=stage.engine.device.type,
            counts=result.counts,
            losses=result.own,
            gradient_norm=result.gradient_norm,
            loss_scale=start.loss_scale,
            random=start.random,
            methods=stage.objective.state_dict(),
            inexact=inexact,
            batches=start.batches,
            kept=stage.kept_teachers,
        )

    @classmethod
    def load(cls, directory: Path, suffix: str = "") -> SavedStep:
        """Read a step from the directory that `save_step` made.

        Args:
            directory: The directory.
            suffix: The suffix of a rank's files; empty for the first.
        """
        stored = json.loads((directory / f"step{suffix}.json").read_text())
        values = put_tensors(stored, load_file(directory / f"step{suffix}.safetensors"))
        values["batches"] = [_batch(values) for values in values["batches"]]
        return cls(**values)

    def save(self, directory: Path, suffix: str) -> None:
        """Write this rank's files; arguments as for `load`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["batches"] = [_values(batch) for batch in self.batches]
        tensors: dict[str, Tensor] = {}
        stored = take_tensors(values, tensors, "step")
        save_tensors(tensors, directory / f"step{suffix}.safetensors")
        (directory / f"step{suffix}.json").write_text(json_text(stored, indent=1))

    def restore(self, stage: Stage, directory: Path) -> None:
        """Bring a stage to where the step began.

        Args:
            stage: The stage.
            directory: The directory of the step.
        """
        load_weights(stage.student.model, directory / STUDENT)
        load_weights(stage.objective.modules, directory / MODULES)
        stage.objective.load_state_dict(self.methods)
        if stage.engine.scale is not None:
            stage.engine.scale.load_state_dict(self.loss_scale)
        restore_random(stage, self.random)


def save_step(stage: Stage, step: Step, result: StepResult) -> Path:
    """Save a step that is not finite, and return its directory; every rank calls it.

    Args:
        stage: The stage, whose weights are still those before the step.
        step: Its position in training.
        result: The step.
    """
    target = stage.directory / NOT_FINITE
    draft = target.with_name(f".{NOT_FINITE}.new")
    if is_first():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    wait()
    save_weights(stage.student.model, draft / STUDENT)
    save_weights(stage.objective.modules, draft / MODULES)
    saved = SavedStep.of(stage, step, result)
    if is_first_of_copy():
        saved.save(draft, rank_suffix())
    wait()
    if is_first():
        replace_directory(draft, target)
    wait()
    return target


def _values(batch: Batch) -> dict[str, Any]:
    """Return the attributes of a batch; what methods declare is found again."""
    public = [field.name for field in fields(batch) if not field.name.startswith("_")]
    values = {name: getattr(batch, name) for name in public}
    return values | {"views": {name: _values(view) for name, view in batch.views.items()}}


def _batch(values: Mapping[str, Any]) -> Batch:
    """Return the batch whose attributes `_values` returned."""
    return Batch(**{**values, "views": {n: _batch(view) for n, view in values["views"].items()}})
