"""One optimizer step: teachers first, then the student, then the sum of the losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.step import Step
from gkd_core.distributed.data_parallel import sum_over_ranks
from gkd_core.distributed.teacher_batches import TeacherBatches, gather_teacher_batches
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import StepPlan
from gkd_core.optim.engine import count_items

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, still on the device: reading it synchronizes.

    Attributes:
        losses: Every term, unweighted and averaged over the step, and the weighted `total`.
        gradient_norm: The norm of the gradient before clipping.
        samples: The number of samples.
        skipped: Whether the update was skipped because the gradient overflowed in fp16.
    """

    losses: Mapping[str, Tensor]
    gradient_norm: Tensor
    samples: int
    skipped: bool = False

    def read(self) -> dict[str, float]:
        """Return the losses as floats."""
        values = torch.stack(list(self.losses.values())).tolist()
        return dict(zip(self.losses, values, strict=True))


def train_step(stage: Stage, batches: Sequence[Batch], step: Step) -> StepResult:
    """Run one optimizer step.

    Args:
        stage: The stage, with its models, objective and engine.
        batches: The micro-batches of this step.
        step: The position in training.
    """
    batches = stage.rollout(batches, step)
    for batch in batches:
        stage.objective.declare_items(batch)
    counts = count_items(batches)
    plan = stage.objective.plan(step)
    stage.engine.set_lr_factors(plan.lr_factors)
    losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=stage.engine.device))
    for number, cpu_batch in enumerate(batches, 1):
        teacher_batches = gather_teacher_batches(cpu_batch).to(stage.engine.device)
        loss = stage.engine.forward(
            partial(_loss, stage, plan, teacher_batches, step, counts, losses)
        )
        stage.engine.backward(loss, last=number == len(batches))
        del loss
    losses, norm = sum_over_ranks(losses), stage.engine.step(step.index)
    scale = stage.engine.scale
    return StepResult(losses, norm, counts["sample"], scale is not None and scale.overflowed)


def _loss(
    stage: Stage,
    plan: StepPlan,
    teacher_batches: TeacherBatches,
    step: Step,
    counts: Mapping[ItemKind, int],
    losses: dict[str, Tensor],
) -> Tensor:
    """Return the loss of a micro-batch, after adding it and its terms to `losses`."""
    batch = teacher_batches.batches[teacher_batches.own]
    captured = run_passes(
        plan, stage.student, stage.teachers, batch, step, teacher_batches, stage.feature_offload
    )
    terms = stage.objective.terms(captured, batch, step, plan)
    total = stage.objective.total(terms, counts, step)
    losses["total"] += total.detach()
    for name, term in terms.items():
        losses[name] += term.mean(counts).detach()
    return total
