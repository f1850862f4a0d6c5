"""A model of what DeepSpeed's ZeRO keeps in memory, and when.

DeepSpeed uses memory addresses, which fake tensors do not have. This is the only place where its
behavior is modeled instead of executed: partitions, buckets, copies and communication, in the order
in which DeepSpeed 0.19 creates them (`runtime/zero/stage_1_and_2.py`, `stage3.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from gkd_core.config.schema import RunConfig
from gkd_core.distributed.groups import data_size
from gkd_core.errors import ConfigError
from gkd_core.models.parts import Parts
from gkd_core.optim.deepspeed import BUCKET
from gkd_core.optim.engine import LocalEngine, autocast
from gkd_core.optim.groups import ChosenOptimizer, Group
from gkd_core.optim.partitions import PartitionedCopies
from gkd_core.optim.whole import WholeOptimizer
from gkd_core.planning.gathering import Gathering
from gkd_core.planning.memory_tracker import ABSENT, HOST, TRANSIT, MemoryKind, MemoryTracker

if TYPE_CHECKING:
    from gkd_core.training.stage_spec import StageSpec

PERSISTENT = 10
"""Weights of at most this many times the hidden size stay whole on every rank."""


class ZeroEngine(LocalEngine):
    """Allocates and releases memory as DeepSpeed's engine does.

    Args:
        student: The student.
        modules: The auxiliary modules.
        config: The configuration of the stage.
        total_steps: Number of optimizer steps of the stage.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished.
        chosen: The optimizer.
        tracker: Tracks the memory.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        modules: nn.Module,
        config: RunConfig,
        total_steps: int,
        device: torch.device,
        parts: Parts,
        chosen: ChosenOptimizer,
        tracker: MemoryTracker,
    ) -> None:
        models = [student, modules]
        super().__init__(models, config.training, total_steps, device, parts, chosen)
        self.tracker = tracker
        self.ranks = data_size()
        self.zero = config.parallel.zero
        self.offload = config.parallel.offload_optimizer != "none"
        self.home: MemoryKind = HOST if self.offload else "optimizer"
        self.groups = [list(group["params"]) for group in self.optimizer.param_groups]
        self.mine = {id(p) for group in self.groups for p in _partition(group, self.ranks)}
        self.bucket: Tensor | None = None
        self.pending: list[Parameter] = []
        self.gradients: list[Tensor] = []
        self.divided: set[int] = set()
        self.kept: list[Tensor] = []
        self.gathering: Gathering | None = None
        with tracker.track(self.home):
            self.partitions = [Parameter(part) for part in self._parts()]
        for group, partition in zip(self.optimizer.param_groups, self.partitions, strict=True):
            group["params"] = [partition]
        if self.copies is not None:
            self.copies.attach(self.partitions)
        if self.offload:
            self._keep_on_host()
        if self.zero == 3:
            waits = config.parallel.offload_params != "none"
            self._divide_weights(student, HOST if waits else "student weights")
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def _make_optimizer(self, groups: Sequence[Group]) -> None:
        """Make an optimizer of partitions if it can be one, and otherwise of whole weights."""
        self.copies: PartitionedCopies | None = None
        if self.chosen.factory.elementwise:
            super()._make_optimizer(groups)
        else:
            self.copies = PartitionedCopies(groups)
            self.optimizer = WholeOptimizer(self.chosen, groups, self.division, self.copies)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward passes and the loss of a micro-batch."""
        with autocast(self.config, self.device, caches=self.zero < 3):
            return loss()

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a micro-batch."""
        before = self.gradients
        if self.zero < 3:
            self.gradients = []  # each micro-batch has its own until they are added
        loss.backward()  # type: ignore[no-untyped-call]
        if self.zero > 1 or last:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    self._reduce(parameter)
            self._flush()
        if self.gathering is not None:
            self.gathering.release_all()
        elif self.zero == 2 or last:
            self.bucket = None
        self.gradients = before or self.gradients

    def step(self, index: int) -> Tensor:
        """Update this rank's partition, and gather the others'."""
        everything = self.optimizer.param_groups
        for group, partition in zip(everything, self.partitions, strict=True):
            if not self.offload:
                with self.tracker.track("gradients"):
                    partition.grad = torch.empty_like(partition)
            with self.tracker.track(self.home):
                self.optimizer.param_groups = [group]
                self.optimizer.step()
            if not self.offload:
                partition.grad = None
        self.optimizer.param_groups = everything
        if self.zero < 3:
            self.gradients = []
        whole = [p for p in self.parameters if id(p) not in self.divided]
        self.tracker.send("_allgather_base_", 4 * _total(whole), self.ranks)
        return torch.zeros(())

    def _keep_on_host(self) -> None:
        """Allocate the gradient of the partition, and buffers for weights on their way back."""
        with self.tracker.track(HOST):
            for partition in self.partitions:
                partition.grad = torch.empty_like(partition)
            if self.zero < 3:
                self.kept = self._parts()
        if self.zero < 3:
            with self.tracker.track(TRANSIT):
                self.kept.append(torch.empty(max(p.numel() for p in self.parameters)))

    def _divide_weights(self, student: PreTrainedModel, home: MemoryKind) -> None:
        """Shard the large weights, which are whole only while in use."""
        least = PERSISTENT * student.config.hidden_size
        divided = [p for p in self.parameters if p.numel() > least]
        self.divided = {id(p) for p in divided}
        self.tracker.claim(divided, ABSENT)
        with self.tracker.track(home):
            self.kept = self._parts()
        # An offloaded optimizer keeps these gradients on the host, besides those that it reads.
        with self.tracker.track(HOST if self.offload else "gradients"):
            self.gradients = self._parts()
        self._make_bucket()
        self.gathering = Gathering(student, divided, self.tracker, self.ranks)

    def _make_bucket(self) -> None:
        if self.bucket is None:
            with self.tracker.track(TRANSIT):
                self.bucket = torch.empty(BUCKET)

    def _parts(self) -> list[Tensor]:
        """Return this rank's partition of each group of weights."""
        return [torch.empty(-(-_total(group) // self.ranks)) for group in self.groups]

    def _accumulated(self, parameter: Parameter) -> None:
        """Handle a complete gradient; the first one of a step allocates the bucket."""
        self._make_bucket()
        if self.zero > 1:
            self._reduce(parameter)

    def _reduce(self, parameter: Parameter) -> None:
        """Add a gradient to the bucket, which is reduced over the ranks when it is full."""
        assert self.bucket is not None, "allocated with the first gradient"
        size = parameter.numel()
        if self.gathering is not None:
            self.gathering.release([parameter])
        if self.pending and _total(self.pending) + size > BUCKET:
            self._flush()
        self.pending.append(parameter)
        if size <= BUCKET:
            parameter.grad = None

    def _flush(self) -> None:
        size = _total(self.pending)
        if not size:
            return
        if self.ranks > 1:
            with self.tracker.track(TRANSIT):
                copy = torch.empty(size)
            del copy
        if self.zero == 3:
            self.tracker.send("_reduce_scatter_base_", 4 * size // self.ranks, self.ranks)
        else:
            self.tracker.send("allreduce_", 4 * size, self.ranks)
        held = [p for p in self.pending if id(p) in self.mine]
        if held and not self.gradients and not self.offload:
            with self.tracker.track("gradients"):
                mine = sum(p.numel() for p in self.parameters if id(p) in self.mine)
                self.gradients = [torch.empty(mine)]
        for parameter in self.pending:
            parameter.grad = None
        self.pending = []


def check_modeled(spec: StageSpec) -> None:
    """Refuse to plan what is not modeled here: ZeRO-3 with weights that are not trained.

    DeepSpeed gathers such weights for the backward pass too, but releases them at other moments.

    Raises:
        ConfigError: The student has adapters.
    """
    if spec.config.student.lora is not None and spec.config.parallel.zero == 3:
        raise ConfigError(
            "parallel.zero = 3 cannot be planned with student.lora: when DeepSpeed gathers frozen "
            "weights is not modeled. Plan with parallel.zero = 2, which needs more memory on each "
            "GPU by the frozen weights; a run takes either"
        )


def _total(parameters: Iterable[Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _partition(group: Iterable[Parameter], ranks: int) -> Iterable[Parameter]:
    """Yield the weights that the first rank's partition holds, in whole or in part."""
    weights = list(group)
    room = -(-_total(weights) // ranks)
    for weight in weights:
        if room > 0:
            yield weight
        room -= weight.numel()
