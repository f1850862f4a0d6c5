"""`Engine`: what the loop asks of whatever holds and optimises the trained weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from gkd_core.config.schema import TrainingConfig
from gkd_core.data.batch import Batch, ItemKind


class Engine(Protocol):
    """Optimises the student and the auxiliary modules.

    Attributes:
        device: Where the models live.
    """

    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes and losses."""

    def counts(self, batches: Sequence[Batch]) -> Mapping[ItemKind, int]:
        """Return the number of items in an optimizer step, over all micro-batches and ranks."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch."""

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping."""

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by name."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_tensors` returned."""


class LocalEngine:
    """AdamW in a single process.

    Args:
        trained: The student and the auxiliary modules.
        config: Optimiser settings.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Where the models live.
    """

    def __init__(
        self,
        trained: Iterable[nn.Module],
        config: TrainingConfig,
        total_steps: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.config = config
        self.total_steps = total_steps
        self.parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.parameters, config.weight_decay),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Return bf16 autocast, or nothing in fp32."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def counts(self, batches: Sequence[Batch]) -> Mapping[ItemKind, int]:
        """Return the number of items over the micro-batches."""
        total: Counter[ItemKind] = Counter()
        for batch in batches:
            total.update(batch.counts())
        return total

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(index)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`: linear warm-up, then the chosen decay."""
        return self.config.lr * lr_factor(self.config, index, self.total_steps)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the moments and step counts of AdamW as `PARAMETER.NAME`."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": value for i, item in state.items() for name, value in item.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_tensors` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


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


def _decay_groups(parameters: Iterable[Tensor], decay: float) -> list[dict[str, object]]:
    """Decay matrices only; biases and normalisation have fewer than two dimensions."""
    kept = list(parameters)
    matrices = [p for p in kept if p.dim() >= 2]
    vectors = [p for p in kept if p.dim() < 2]
    groups = [(matrices, decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": value} for params, value in groups if params]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter once (tied ones too) and every buffer that belongs to the weights."""
    yield from model.named_parameters()
    kept = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer
