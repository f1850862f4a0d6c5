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
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from gkd_core.config.schema import RunConfig, TrainingConfig
from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.distributed.data_parallel import add_counts, sum_gradients
from gkd_core.distributed.shards import Division, Sliceable
from gkd_core.models.parts import Part, Parts
from gkd_core.optim.loss_scale import LossScale, loss_scale

STEP = "step"
"""AdamW's name for its step count, the only state that does not have the shape of a weight."""


class Engine(Protocol):
    """Optimizes the student and the auxiliary modules, in one process or several.

    Every rank calls every method, in the same order.

    Attributes:
        device: Device of the models.
        scale: Loss scale in fp16; else None.
    """

    device: torch.device
    scale: LossScale | None

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward passes and the loss of a micro-batch; return the loss."""

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a micro-batch; `last` means that a step follows."""

    def set_lr_factors(self, factors: Mapping[Part, float]) -> None:
        """Set the learning-rate factors of the next step, by part; 0 freezes a part."""

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping.

        The weights do not change if the gradient overflows in fp16.
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
    [PreTrainedModel, nn.Module, RunConfig, int, torch.device, Parts], Engine
]
"""Makes an engine from the arguments of `build_engine`."""


class LocalEngine:
    """AdamW on this process's weights or shards; gradients are summed over the copies.

    Args:
        trained: The student and the auxiliary modules.
        config: Optimizer settings.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished.
    """

    def __init__(
        self,
        trained: Iterable[nn.Module],
        config: TrainingConfig,
        total_steps: int,
        device: torch.device,
        parts: Parts = MappingProxyType({}),
    ) -> None:
        self.device = device
        self.config = config
        self.total_steps = total_steps
        models = list(trained)
        self.parameters = trained_parameters(models, parts)
        self.scale = loss_scale(config)
        self._division = Division(models)
        self.optimizer = adamw(self.parameters, config, parts)
        self.factors: Mapping[Part, float] = {}

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

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping."""
        set_rates(self.optimizer, self.lr(index), self.factors)
        for group in self.optimizer.param_groups:
            for weight in group["params"] if group["lr"] == 0 else ():
                weight.grad = None  # AdamW skips weights without a gradient
        sum_gradients(self.parameters)
        norm = self._division.gradient_norm(self.parameters)
        if self.scale is not None:
            norm = norm / self.scale.value
            if not self._unscale(self.scale, norm):
                self.optimizer.zero_grad(set_to_none=True)
                return norm
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip or math.inf, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`: linear warm-up, then the chosen decay."""
        return self.config.lr * lr_factor(self.config, index, self.total_steps)

    def _unscale(self, scale: LossScale, norm: Tensor) -> bool:
        """Divide the gradient by the loss scale, and return whether it did not overflow."""
        factor = 1 / scale.value
        scale.update(overflows := not bool(norm.isfinite()))
        for weight in () if overflows else self.parameters:
            if weight.grad is not None:
                weight.grad.mul_(factor)
        return not overflows

    def state_tensors(self) -> dict[str, Tensor]:
        """Return AdamW's moments and step counts as `PARAMETER.NAME`."""
        found: dict[str, Tensor] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, own in state.items():
                weight = self.parameters[index]
                whole = own if name == STEP else self._division.gather(weight, own)
                if whole is not None:
                    found[f"{index}.{name}"] = whole
        return found

    def load_state_tensors(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `state_tensors`."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, whole in tensors.items():
            index, name = int(key.split(".")[0]), key.split(".")[1]
            weight = self.parameters[index]
            own = whole[...] if name == STEP else self._division.shard(weight, whole)
            state.setdefault(index, {})[name] = own
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def close(self) -> None:
        """Do nothing: nothing is attached to the models."""


def build_engine(
    student: PreTrainedModel,
    modules: nn.Module,
    config: RunConfig,
    total_steps: int,
    device: torch.device,
    parts: Parts,
) -> Engine:
    """Return the engine selected by the configuration.

    Args:
        student: The student.
        modules: The auxiliary modules.
        config: The configuration of the stage.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished; else empty.
    """
    if config.parallel.zero == 0:
        for module in (student, modules):
            module.to(device)
        return LocalEngine([student, modules], config.training, total_steps, device, parts)
    from gkd_core.optim.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(student, modules, config, total_steps, device, parts)


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


def trained_parameters(modules: Iterable[nn.Module], parts: Parts) -> list[nn.Parameter]:
    """Return the trained weights, in the order in which AdamW numbers them."""
    found = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [weight for group in _groups(found, parts).values() for weight in group]


def adamw(parameters: Iterable[nn.Parameter], config: TrainingConfig, parts: Parts) -> AdamW:
    """Return the optimizer of some weights, with groups whose `part` sets the learning rate."""
    return AdamW(
        [
            {"params": group, "weight_decay": config.weight_decay * decays, "part": part}
            for (decays, part), group in _groups(parameters, parts).items()
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_rates(optimizer: Optimizer, lr: float, factors: Mapping[Part, float]) -> None:
    """Set the learning rate of every optimizer group; only frozen parts get 0."""
    for group in optimizer.param_groups:
        group["lr"] = lr * factors.get(group["part"], 1.0)


def lr_factor(config: TrainingConfig, index: int, total: int) -> float:
    """Return the share of the peak learning rate at step `index` (0-based) of `total`."""
    warmup = round(config.warmup * total)
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(total - warmup, 1)
    if config.lr_schedule == "linear":
        return 1 - done
    if config.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def _groups(
    weights: Iterable[nn.Parameter], parts: Parts
) -> Mapping[tuple[bool, Part | None], list[nn.Parameter]]:
    """Group weights into matrices, which decay, and vectors, and both by part."""
    part_of = {weight: part for part, own in parts.items() for weight in own}
    found: dict[tuple[bool, Part | None], list[nn.Parameter]] = {}
    for weight in sorted(weights, key=_is_vector):
        found.setdefault((not _is_vector(weight), part_of.get(weight)), []).append(weight)
    return found


def _is_vector(weight: Tensor) -> bool:
    """Return whether a weight is a bias or a normalization, with fewer than two dimensions."""
    return weight.dim() < 2
