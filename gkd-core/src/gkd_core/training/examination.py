"""The first value of a step that is not finite: found by repeating it with hooks on all modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.step import Step
from gkd_core.distributed.data_parallel import collect
from gkd_core.distributed.teacher_batches import gather_teacher_batches
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.features import Features
from gkd_core.hooks.forward import current_forward
from gkd_core.hooks.paths import LOGITS
from gkd_core.objective.captured import Captured
from gkd_core.objective.passes import run_passes
from gkd_core.optim.engine import autocast
from gkd_core.teachers.teacher import SourcedTeacher, Teacher
from gkd_core.training.finding import LARGEST, STUDENT, Excess, Finding, Owner
from gkd_core.training.random_states import random_states, restore_random
from gkd_core.training.step import StepResult, accumulate, declare_items

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage


KINDS = ("nan", "inf", "-inf")
"""The kinds of values in a tensor that are not finite."""


class Examination(NamedTuple):
    """A step that was computed under inspection.

    Attributes:
        found: What is not finite first, on any rank; None if all is finite.
        losses: This rank's share of the losses.
    """

    found: Finding | None
    losses: Mapping[str, Tensor]


def examine(
    stage: Stage,
    batches: Sequence[Batch],
    step: Step,
    counts: Mapping[ItemKind, int],
    backward: bool,
) -> Examination:
    """Compute a step without its update; every rank calls it.

    Args:
        stage: The stage, as it is before the step.
        batches: The micro-batches, with the text that models wrote.
        step: The position in training.
        counts: The number of items in the step.
        backward: Whether to compute the gradient too.
    """
    inspector = Inspector(stage)
    declare_items(stage, batches)
    with inspector.on(), torch.set_grad_enabled(backward):
        plan = stage.objective.plan(step)
        losses = accumulate(stage, batches, step, plan, counts, inspector, backward)
    return Examination(_of_any_rank(inspector.first), losses)


def examine_teachers(stage: Stage, result: StepResult, step: Step) -> Finding | None:
    """Return the first value of a step's teachers that is not finite; the stage does not change.

    Every rank calls it. -inf alone does not count.

    Args:
        stage: The stage.
        result: The step.
        step: Its position in training.
    """
    before, inspector = random_states(stage), Inspector(stage)
    device = stage.engine.device
    with inspector.on(), torch.no_grad(), autocast(stage.config.training, device):
        for batch in result.start.batches:
            batches = gather_teacher_batches(batch).to(device)
            own = batches.batches[batches.own]
            models = stage.student, stage.teachers, own, step, batches
            inspector.see_batch(own)
            inspector.see_features(run_passes(result.plan, *models, teachers_only=True))
    restore_random(stage, before)
    found = _of_any_rank(inspector.first)
    return None if found is None or found.is_only_negative else found


class Inspector:
    """Notes in order what is not finite while a step is computed: an `Observer` of the step.

    Padding is left out: what a model computes there is of no use.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._found: list[Finding] = []
        self._excess: Excess | None = None
        self._batch: Batch | None = None

    @property
    def first(self) -> Finding | None:
        """The first finding, or None.

        -inf alone counts if nothing else is found, or if nan or inf follows in the same model.
        """
        serious = next((found for found in self._found if not found.is_only_negative), None)
        if serious is None:
            return self._found[0] if self._found else None
        first = next(found for found in self._found if found.owner == serious.owner)
        from_models = first.owner.side in ("teacher", "student") and not first.is_gradient
        return first if from_models else replace(first, excess=self._excess)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look at the output of every module of the stage inside the context."""
        handles = [
            # Before the hooks of an `Extractor`, which may end the pass.
            module.register_forward_hook(partial(self._see_output, owner, path), prepend=True)
            for owner, model in self._models()
            for path, module in model.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def see_batch(self, batch: Batch) -> None:
        """Note the rows of a micro-batch."""
        self._batch = batch

    def see_features(self, captured: Captured) -> None:
        """Look at what no module computes: answers of a source, and logits left to the losses."""
        for (owner, teacher), passes in zip(self._teachers(), captured.teachers, strict=True):
            for features in passes.values():
                if isinstance(features, Features):
                    self._see_features(owner, teacher, features)
        for features in captured.student.values():
            self._see_features(STUDENT, self._stage.student, features)

    def see_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Look at the terms of a micro-batch."""
        for name, loss in losses.items():
            if name != "total":
                self._note(Owner("term", name), "", _kinds(loss))

    def _teachers(self) -> Iterator[tuple[Owner, Teacher]]:
        for teacher, spec in zip(self._stage.teachers, self._stage.spec.teachers, strict=False):
            yield Owner("teacher", spec.info.name), teacher

    def _models(self) -> Iterator[tuple[Owner, nn.Module]]:
        """Yield everything that has modules."""
        for owner, teacher in self._teachers():
            if isinstance(teacher, Extractor):
                yield owner, teacher.model
        yield STUDENT, self._stage.student.model
        for name, modules in self._stage.objective.modules.items():
            yield Owner("method", name), modules

    def _see_features(self, owner: Owner, model: Teacher, features: Features) -> None:
        for capture, tensor in (features.tensors | features.shares).items():
            self._note_size(owner, str(capture), tensor)
        if isinstance(model, SourcedTeacher):
            for answer in features.held():
                self._note(owner, f"the source '{model.source.name}'", _kinds(answer))
        elif features.deferred is not None:
            head = next(n for n, m in model.model.named_modules() if m is model.sites.head)
            rows = features.deferred.hidden.detach()  # one at a time: all logits take much memory
            found = []
            for row in rows:
                logits = replace(features.deferred, hidden=row).dense()
                found.append(_kinds(logits).any(-1))
                self._note_size(owner, str(LOGITS), logits)
            self._note(owner, head, torch.stack(found, 1))

    def _see_output(
        self, owner: Owner, path: str, module: nn.Module, inputs: Any, output: Any
    ) -> None:
        place = path or type(module).__name__
        for tensor in _tensors(output):
            self._note(owner, place, _kinds(tensor.detach()))
            if tensor.requires_grad:
                note = partial(self._see_gradient, owner, place)
                tensor.register_hook(note)  # type: ignore[no-untyped-call]

    def _see_gradient(self, owner: Owner, place: str, gradient: Tensor) -> None:
        self._note(owner, place, _kinds(gradient), is_gradient=True)

    def _note(self, owner: Owner, place: str, kinds: Tensor, is_gradient: bool = False) -> None:
        """Note the output of a module if it is not finite.

        Args:
            owner: What it belongs to.
            place: The module.
            kinds: Where it is nan, inf and -inf, bool `[3, ...]`.
            is_gradient: Whether it is the gradient.
        """
        mask = self._mask(kinds.shape[1:])
        if mask is not None:
            kinds = kinds & mask.reshape(1, *mask.shape, *(1,) * (kinds.dim() - 1 - mask.dim()))
        if bool(kinds.any()):
            values = tuple(name for name, where in zip(KINDS, kinds, strict=True) if where.any())
            rows = self._rows(kinds.any(0))
            self._found.append(Finding(owner, place, values, rows, is_gradient))

    def _note_size(self, owner: Owner, site: str, tensor: Tensor) -> None:
        """Note the first tensor that methods read whose finite values are too large for a loss."""
        if self._excess is None and tensor.numel():
            largest = float(tensor.detach().abs().nan_to_num(0, 0, 0).max())
            if largest > LARGEST:
                self._excess = Excess(owner, site, largest)

    def _mask(self, shape: torch.Size) -> Tensor | None:
        """Return the mask of the values that are not of padding; None if there are no positions."""
        forward = current_forward()
        inputs = {} if self._batch is None else self._batch.inputs
        mask = inputs.get("attention_mask") if forward is None else forward.mask
        if mask is None:
            return None
        # Some blocks join the rows of all samples.
        fitting = (one for one in (mask, mask.flatten()) if one.shape == shape[: one.dim()])
        return next((one.bool() for one in fitting), None)

    def _rows(self, broken: Tensor) -> tuple[int, ...]:
        """Return the numbers of the rows in which a tensor is not finite, if it has rows."""
        if self._batch is None or broken.dim() == 0 or len(broken) != len(self._batch):
            return ()
        return tuple(self._batch.rows[broken.flatten(1).any(1)].tolist())


def _kinds(tensor: Tensor) -> Tensor:
    """Return the masks of a tensor's nan, inf and -inf, bool `[3, ...]`."""
    return torch.stack([tensor.isnan(), tensor.isposinf(), tensor.isneginf()])


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in the output of a module."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _of_any_rank(found: Finding | None) -> Finding | None:
    """Return the finding of the first rank that has one."""
    return next((each for each in collect([found]) if each is not None), None)
