"""`Engine`: the loop's interface to the trained weights and their optimizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from gkd_core.config.schema import RunConfig, TrainingConfig
from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.distributed.data_parallel import add_counts, sum_gradients
from gkd_core.distributed.shards import Division, Sliceable
from gkd_core.models.parts import Part, Parts
from gkd_core.optim.groups import ChosenOptimizer, Group, members, set_rates, weight_groups
from gkd_core.optim.loss_scale import LossScale, loss_scale
from gkd_core.optim.optimizers.adamw import AdamW
from gkd_core.optim.schedules import lr_factor
from gkd_core.optim.state import OptimizerState, ShardedState
from gkd_core.optim.whole import EqualCopies, WholeOptimizer


class Engine(Protocol):
    """Optimizes the student and the auxiliary modules, in one process or several.

    Every rank calls every method, in the same order.

    Attributes:
        device: Device of the models.
        scale: Loss scale in fp16; else None.
        waits: Whether a step waits for the device, so that reading its result costs nothing.
    """

    device: torch.device
    scale: LossScale | None
    waits: bool

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward passes and the loss of a micro-batch; return the loss."""

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a micro-batch; `last` means that a step follows."""

    def set_lr_factors(self, factors: Mapping[Part, float]) -> None:
        """Set the learning-rate factors of the next step, by part; 0 freezes a part."""

    def note_loss(self, loss: Tensor) -> None:
        """Tell the loss of the next step, summed over its micro-batches and the ranks."""

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping.

        The weights do not change if the loss or the gradient is not finite, and never again after
        that unless the gradient overflowed in fp16: the loop, which may find out some steps later,
        finds them as they were before the step.
        """

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the whole optimizer state by name, on the first rank."""

    def load_state_tensors(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `state_tensors`, after the weights themselves."""

    def close(self) -> None:
        """Release the models."""


EngineMaker: TypeAlias = Callable[
    [PreTrainedModel, nn.Module, RunConfig, int, torch.device, Parts, ChosenOptimizer], Engine
]
"""Makes an engine from the arguments of `build_engine`."""


class LocalEngine:
    """An optimizer of this process's weights or shards; gradients are summed over the copies.

    Args:
        trained: The student and the auxiliary modules.
        config: Optimizer settings.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished.
        chosen: The optimizer; AdamW by default.

    Attributes:
        halts: Whether the weights stay as they are from a step that is not finite on; not in a
            simulation, whose tensors have no values.
    """

    def __init__(
        self,
        trained: Iterable[nn.Module],
        config: TrainingConfig,
        total_steps: int,
        device: torch.device,
        parts: Parts = MappingProxyType({}),
        chosen: ChosenOptimizer | None = None,
    ) -> None:
        self.device = device
        self.config = config
        self.total_steps = total_steps
        self.chosen = chosen or ChosenOptimizer(AdamW(AdamW.Config(), config))
        models = list(trained)
        self.division = Division(models)
        groups = weight_groups(models, parts, self.chosen, self.division)
        self.parameters = members(groups)
        self.scale = loss_scale(config)
        self.optimizer: Optimizer
        self._state: OptimizerState
        self._make_optimizer(groups)
        self.factors: Mapping[Part, float] = {}
        # Fused optimizers read on the device whether to leave the weights as they are.
        self.waits = self.scale is not None or not getattr(
            self.optimizer, "_step_supports_amp_scaling", False
        )
        self.halts = True
        self._halted = torch.zeros((), device=device)
        self._loss: Tensor | None = None

    def _make_optimizer(self, groups: Sequence[Group]) -> None:
        """Make an optimizer of shards if it can be one, and otherwise of whole weights."""
        if self.division.ranks == 1 or self.chosen.factory.elementwise:
            self.optimizer = self.chosen.factory.build(groups)
            self._state = ShardedState(self.optimizer, self.parameters, self.division)
        else:
            copies = EqualCopies(groups)
            whole = WholeOptimizer(self.chosen, groups, self.division, copies)
            self.optimizer, self._state = whole, whole

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward passes and the loss of a micro-batch."""
        with autocast(self.config, self.device):
            return loss()

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a micro-batch."""
        scaled = loss if self.scale is None else loss * self.scale.value
        scaled.backward()  # type: ignore[no-untyped-call]

    def set_lr_factors(self, factors: Mapping[Part, float]) -> None:
        """Set the learning-rate factors of the next step, by part; 0 freezes a part."""
        self.factors = factors

    def note_loss(self, loss: Tensor) -> None:
        """Tell the loss of the next step, summed over its micro-batches and the ranks."""
        self._loss = loss

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping."""
        set_rates(self.optimizer, self.lr(index), self.factors)
        for group in self.optimizer.param_groups:
            for weight in group["params"] if group["lr"] == 0 else ():
                weight.grad = None  # optimizers skip weights without a gradient
        sum_gradients(self.parameters)
        norm = self.division.gradient_norm(self.parameters, self.device)
        if self.scale is not None:
            norm = norm / self.scale.value
        if self._may_update(norm):
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip or math.inf, norm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`: linear warm-up, then the chosen decay."""
        return self.config.lr * lr_factor(self.config, index, self.total_steps)

    @property
    def halted(self) -> bool:
        """Whether a step was not finite, for another reason than an overflow in fp16; waits."""
        return bool(self._halted)

    def _may_update(self, norm: Tensor) -> bool:
        """Return whether to call the optimizer; a fused one reads on the device what to do."""
        loss, self._loss = self._loss, None
        if not self.halts:
            return True
        if self.scale is not None:
            return self._unscale(self.scale, norm, loss)
        finite = norm.isfinite()
        if loss is not None:
            finite &= loss.isfinite()
        self._halted = torch.maximum(self._halted, (~finite).float())
        if self.waits:
            return not self.halted
        self.optimizer.found_inf = self._halted  # type: ignore[attr-defined]
        return True

    def _unscale(self, scale: LossScale, norm: Tensor, loss: Tensor | None) -> bool:
        """Divide the gradient by the loss scale, and return whether to update the weights.

        Only a gradient can overflow because of the scale, and not if the loss is not finite.
        """
        broken = loss is not None and not bool(loss.isfinite())
        overflows = not broken and not bool(norm.isfinite())
        factor = 1 / scale.value
        scale.update(overflows)
        if (broken or overflows) and not scale.overflowed:
            self._halted.fill_(1)
        if broken or overflows or self.halted:
            return False
        for weight in self.parameters:
            if weight.grad is not None:
                weight.grad.mul_(factor)
        return True

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the whole optimizer state as `NUMBER.NAME`."""
        return self._state.gather()

    def load_state_tensors(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `state_tensors`."""
        self._state.restore(tensors)

    def close(self) -> None:
        """Do nothing: nothing is attached to the models."""


def build_engine(
    student: PreTrainedModel,
    modules: nn.Module,
    config: RunConfig,
    total_steps: int,
    device: torch.device,
    parts: Parts,
    chosen: ChosenOptimizer,
) -> Engine:
    """Return the engine selected by the configuration.

    Args:
        student: The student.
        modules: The auxiliary modules.
        config: The configuration of the stage.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished; else empty.
        chosen: The optimizer.
    """
    if config.parallel.zero == 0:
        for module in (student, modules):
            module.to(device)
        models = [student, modules]
        return LocalEngine(models, config.training, total_steps, device, parts, chosen)
    from gkd_core.optim.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(student, modules, config, total_steps, device, parts, chosen)


def count_items(batches: Sequence[Batch]) -> dict[ItemKind, int]:
    """Return the number of items in an optimizer step, over all micro-batches and ranks."""
    total: Counter[ItemKind] = Counter()
    for batch in batches:
        total.update(batch.counts())
    return add_counts(total)


def autocast(
    config: TrainingConfig, device: torch.device, caches: bool = True
) -> AbstractContextManager[object]:
    """Return a context of autocast to bf16 or fp16; it does nothing in fp32.

    Args:
        config: Optimizer settings.
        device: Device of the models.
        caches: Whether to cache the lower-precision copies of weights.
    """
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    enabled = config.precision != "fp32"
    return torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=caches)
