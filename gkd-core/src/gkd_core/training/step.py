"""One optimizer step: teachers first, then the student, then the sum of the losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.step import Step
from gkd_core.distributed.data_parallel import sum_over_ranks
from gkd_core.distributed.teacher_batches import TeacherBatches, gather_teacher_batches
from gkd_core.errors import MethodError
from gkd_core.objective.captured import Captured
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import StepPlan
from gkd_core.optim.engine import count_items
from gkd_core.training.moving_teacher import follow_student
from gkd_core.training.step_start import StepStart

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, still on the device: reading it synchronizes.

    Attributes:
        losses: Every term, unweighted and averaged over the step, and the weighted `total`.
        gradient_norm: The norm of the gradient before clipping.
        counts: The number of items of each kind, over all ranks.
        start: What the step began with.
        plan: Its passes.
        own: The share of `losses` that this rank's rows contribute.
        skipped: Whether the update was skipped because the gradient overflowed in fp16.
    """

    losses: Mapping[str, Tensor]
    gradient_norm: Tensor
    counts: Mapping[ItemKind, int]
    start: StepStart
    plan: StepPlan
    own: Mapping[str, Tensor]
    skipped: bool = False

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.counts["sample"]

    def read(self) -> dict[str, float]:
        """Return the losses as floats."""
        values = torch.stack(list(self.losses.values())).tolist()
        return dict(zip(self.losses, values, strict=True))


class Observer(Protocol):
    """Sees what a step computes."""

    def see_batch(self, batch: Batch) -> None:
        """See a micro-batch before the models run on it."""

    def see_features(self, captured: Captured) -> None:
        """See the features captured in its passes."""

    def see_losses(self, losses: Mapping[str, Tensor]) -> None:
        """See its terms, unweighted, and their weighted sum, `total`."""


def train_step(stage: Stage, batches: Sequence[Batch], step: Step) -> StepResult:
    """Run one optimizer step.

    Args:
        stage: The stage, with its models, objective and engine.
        batches: The micro-batches of this step.
        step: The position in training.
    """
    stage.begun = start = StepStart.of(stage, stage.rollout(batches, step))
    declare_items(stage, start.batches)
    counts = count_items(start.batches)
    plan = stage.objective.plan(step)
    own = accumulate(stage, start.batches, step, plan, counts)
    losses = sum_over_ranks(own)
    stage.begun = None
    stage.engine.note_loss(losses["total"])
    norm = stage.engine.step(step.index)
    follow_student(stage)
    scale = stage.engine.scale
    overflowed = scale is not None and scale.overflowed
    return StepResult(losses, norm, counts, start, plan, own, overflowed)


def declare_items(stage: Stage, batches: Sequence[Batch]) -> None:
    """Add to the micro-batches of a step the items that methods and combiners declare."""
    for batch in batches:
        stage.objective.declare_items(batch)


def accumulate(
    stage: Stage,
    batches: Sequence[Batch],
    step: Step,
    plan: StepPlan,
    counts: Mapping[ItemKind, int],
    observer: Observer | None = None,
    backward: bool = True,
) -> dict[str, Tensor]:
    """Accumulate the gradient of a step; return this rank's share of its losses.

    Args:
        stage: The stage.
        batches: The micro-batches, with the text that models wrote.
        step: The position in training.
        plan: Its passes; the methods have begun it.
        counts: The number of items in the step.
        observer: Sees what is computed.
        backward: Whether to compute the gradient.
    """
    stage.engine.set_lr_factors(plan.lr_factors)
    losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=stage.engine.device))
    for number, cpu_batch in enumerate(batches, 1):
        teacher_batches = gather_teacher_batches(cpu_batch).to(stage.engine.device)
        work = partial(_loss, stage, plan, teacher_batches, step, counts, losses, observer)
        loss = stage.engine.forward(work)
        if backward:
            _refuse_constant(stage, loss, step)
            stage.engine.backward(loss, last=number == len(batches))
        del loss
    return losses


def _refuse_constant(stage: Stage, loss: Tensor, step: Step) -> None:
    """Reject a loss that nothing can be learned from."""
    if loss.requires_grad:
        return
    names = " and ".join(member.name for member in stage.objective.members)
    raise MethodError(
        f"the loss of {names} in step {step.index + 1} of stage '{stage.name}' depends on no "
        "weight that is trained. Compute it from the student's tensors, without `detach` or "
        "`no_grad`"
    )


def _loss(
    stage: Stage,
    plan: StepPlan,
    teacher_batches: TeacherBatches,
    step: Step,
    counts: Mapping[ItemKind, int],
    losses: dict[str, Tensor],
    observer: Observer | None,
) -> Tensor:
    """Return the loss of a micro-batch, after adding it and its terms to `losses`."""
    batch = teacher_batches.batches[teacher_batches.own]
    if observer is not None:
        observer.see_batch(batch)
    captured = run_passes(
        plan,
        stage.student,
        stage.teachers,
        batch,
        step,
        teacher_batches,
        stage.feature_offload,
        kept=stage.kept,
    )
    if observer is not None:
        observer.see_features(captured)
    terms = stage.objective.terms(captured, batch, step, plan)
    total = stage.objective.total(terms, counts, step)
    found = {"total": total.detach()}
    found |= {name: term.mean(counts).detach() for name, term in terms.items()}
    for name, value in found.items():
        losses[name] += value
    if observer is not None:
        observer.see_losses(found)
    return total
