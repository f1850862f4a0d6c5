"""`DeepSpeedEngine`: ZeRO partitioning of optimizer state, gradients and weights over the ranks."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from gkd_core.config.schema import ParallelConfig, RunConfig
from gkd_core.contract.optimizer import STEP, TrainedWeight
from gkd_core.distributed.data_parallel import any_of
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.groups import ModelParallelUnit, current, data_rank, data_size
from gkd_core.distributed.ranks import is_first
from gkd_core.distributed.shards import Division, Sliceable
from gkd_core.errors import ConfigError
from gkd_core.hooks.discarded import note_divided
from gkd_core.models.parts import Part, Parts
from gkd_core.optim.engine import autocast
from gkd_core.optim.groups import ChosenOptimizer, Group, members, set_rates, weight_groups
from gkd_core.optim.loss_scale import loss_scale
from gkd_core.optim.partitions import PartitionedCopies
from gkd_core.optim.schedules import lr_factor
from gkd_core.optim.whole import WholeOptimizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET = 2**24
"""Elements of gradients, or of weights, that ZeRO sends in one communication."""


class DeepSpeedEngine:
    """An optimizer under ZeRO (Rajbhandari et al., SC 2020), as implemented by DeepSpeed.

    Losses are divided by the items of all ranks, so that gradients must be summed; DeepSpeed
    averages them, which `backward` compensates for. A weight that no loss reaches has gradient 0
    here, so that it decays, whereas `LocalEngine` does not update it. If the parts of the student
    are distinguished, a part that no loss reaches is not updated here either.

    Args:
        student: The student.
        modules: The auxiliary modules.
        config: The configuration of the stage.
        total_steps: Length of the stage, for the learning-rate schedule.
        device: Device of the models.
        parts: The parts of the student, if they are ever distinguished; else empty.
        chosen: The optimizer.
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
    ) -> None:
        self.device = device
        self.config = config.training
        self.total_steps = total_steps
        self.zero = config.parallel.zero
        self.scale = loss_scale(self.config)
        self.waits = True  # it reads whether the gradient is finite, and skips the update if not
        self.factors: Mapping[Part, float] = {}
        self._reached = dict.fromkeys(parts, False)
        self._loss: Tensor | None = None
        deepspeed = _import_deepspeed(device)
        self._trained = _Trained(student, modules)
        self._move()
        self._division = Division([student, modules])
        groups = weight_groups([student, modules], parts, chosen, self._division)
        self.parameters = members(groups)
        self._group_of = [n for n, group in enumerate(groups) for _ in group["params"]]
        state = chosen.factory.state(TrainedWeight(()))
        self._has_step = STEP in state
        self._moments = [name for name in state if name != STEP]
        self._watch(parts)
        self._start(deepspeed, _settings(config, student), chosen, groups)
        self._tell_scale()
        if self.zero == 3:
            note_divided(self._trained)
            _keep_recomputed(self._engine.optimizer.parameter_offload.get_param_coordinator())
            for weight in _used_elsewhere(student, modules):
                deepspeed.zero.register_external_parameter(self._trained, weight)

    def _start(
        self,
        deepspeed: Any,
        settings: Mapping[str, Any],
        chosen: ChosenOptimizer,
        groups: Sequence[Group],
    ) -> None:
        """Start DeepSpeed's engine with an optimizer of partitions or of whole weights."""
        copies = PartitionedCopies(groups)
        self._whole: WholeOptimizer | None = None
        if not chosen.factory.elementwise:
            self._whole = WholeOptimizer(chosen, groups, self._division, copies)
        ranks = current()
        self._engine, *_ = deepspeed.initialize(
            model=self._trained,
            optimizer=self._whole or _elementwise(chosen, groups),
            config=settings,
            mpu=None if ranks is None else ModelParallelUnit(ranks),
        )
        if self._whole is not None:
            copies.attach(self._partitions)

    def _move(self) -> None:
        """Move the weights to the device, or, where each rank will move its own part, the rest."""
        if self.zero < 3:
            self._trained.to(self.device)
            return
        for buffer in self._trained.buffers():
            buffer.data = buffer.data.to(self.device)

    def _watch(self, parts: Parts) -> None:
        """Show `_gradient` every gradient that reaches a part of the student."""
        for part, weights in parts.items():
            for weight in filter(attrgetter("requires_grad"), weights):
                weight.register_hook(partial(self._gradient, part))  # type: ignore[no-untyped-call]

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward passes and the loss of a micro-batch."""

        def run() -> Tensor:
            with autocast(self.config, self.device, caches=self.zero < 3):
                return loss()

        found: Tensor = self._engine(run)
        return found

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * data_size(), scale_wrt_gas=False)

    def set_lr_factors(self, factors: Mapping[Part, float]) -> None:
        """Set the learning-rate factors of the next step, by part; 0 freezes a part."""
        self.factors = factors

    def note_loss(self, loss: Tensor) -> None:
        """Tell the loss of the next step, summed over its micro-batches and the ranks."""
        self._loss = loss

    def step(self, index: int) -> Tensor:
        """Clip, update the weights, clear the gradient; return its norm before clipping."""
        loss, self._loss = self._loss, None
        if loss is not None and not bool(loss.isfinite()):
            if self.scale is not None:
                self.scale.update(overflows=False)
            return torch.full_like(loss, math.nan)
        factors = {**self.factors, **dict.fromkeys(self._untouched(), 0.0)}
        set_rates(self._engine.optimizer.optimizer, self.lr(index), factors)
        self._engine.step()
        if self.scale is not None:
            self.scale.update(self._engine.optimizer.overflow)
            self._tell_scale()
        self._reached = dict.fromkeys(self._reached, False)
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    def lr(self, index: int) -> float:
        """Return the learning rate of step `index`: linear warm-up, then the chosen decay."""
        return self.config.lr * lr_factor(self.config, index, self.total_steps)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the whole optimizer state as `NUMBER.NAME`, on the first rank."""
        if self._whole is not None:
            return self._whole.gather()
        from deepspeed.utils import safe_get_full_optimizer_state

        states = self._engine.optimizer.optimizer.state
        if not any(states.get(partition) for partition in self._partitions):
            return {}
        self._make_states({})
        steps = {self._group(n): states[part].get(STEP) for n, part in enumerate(self._partitions)}
        found: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.parameters):
            for name in self._moments:
                own = safe_get_full_optimizer_state(parameter, name)
                moment = self._division.gather(parameter, own)
                if moment is not None and is_first():
                    found[f"{number}.{name}"] = moment.cpu()
            step = steps[self._group_of[number]]
            if step is not None:
                found[f"{number}.{STEP}"] = step.cpu().clone()
        return found if is_first() else {}

    def load_state_tensors(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the result of `state_tensors`, after the weights themselves."""
        self._engine.optimizer.refresh_fp32_params()
        self._tell_scale()
        if self._whole is not None:
            self._whole.restore(tensors)
        elif tensors:
            self._load_partitions(tensors)

    def _load_partitions(self, tensors: Mapping[str, Sliceable]) -> None:
        """Restore the state of an elementwise optimizer, which has the form of the partitions."""
        steps: dict[int, Tensor] = {}
        for number, group in enumerate(self._group_of):
            stored = tensors.get(f"{number}.{STEP}")
            if stored is not None:
                step = stored[...]
                steps[group] = max(step, steps.get(group, step))
        self._make_states(steps)
        for number, parameter in enumerate(self.parameters):
            for name in self._moments:
                whole = tensors.get(f"{number}.{name}")
                if whole is not None:
                    own = self._division.shard(parameter, whole)
                    self._set_moment(parameter, name, own.to(self.device))

    def close(self) -> None:
        """Release the models."""
        self._engine.destroy()

    def _tell_scale(self) -> None:
        """Make DeepSpeed multiply losses, and divide gradients, by the loss scale.

        Its own scaler requires fp16 weights. Here they are in fp32, under autocast.
        """
        if self.scale is not None:
            self._engine.optimizer.override_loss_scale(self.scale.value)

    @property
    def _partitions(self) -> list[Tensor]:
        """This rank's partitions of the weights, as the optimizer knows them."""
        zero = self._engine.optimizer
        partitions: list[Tensor] = (
            zero.fp32_partitioned_groups_flat
            if self.zero == 3
            else zero.single_partition_of_fp32_groups
        )
        return partitions

    def _group(self, partition: int) -> int:
        """Return the group of a partition; ZeRO-3 may divide groups further."""
        if self.zero < 3:
            return partition
        found: int = self._engine.optimizer.sub_group_to_group_id[partition]
        return found

    def _untouched(self) -> Sequence[Part]:
        """Return the parts that no loss of any rank has reached since the last step."""
        reached = any_of(self._reached.values())
        return [part for part, touched in zip(self._reached, reached, strict=True) if not touched]

    def _gradient(self, part: Part, gradient: Tensor) -> Tensor | None:
        """Return 0 for the gradient of a frozen part, to keep it out of the norm; else None."""
        self._reached[part] = True
        return torch.zeros_like(gradient) if self.factors.get(part) == 0 else None

    def _make_states(self, steps: Mapping[int, Tensor]) -> None:
        """Allocate missing moments, as the optimizer does on first use.

        Args:
            steps: Number of steps done, by group; a group without steps can be omitted.
        """
        states = self._engine.optimizer.optimizer.state
        for number, partition in enumerate(self._partitions):
            if not states.get(partition):
                states[partition] = {name: torch.zeros_like(partition) for name in self._moments}
                if self._has_step:
                    step = steps.get(self._group(number), torch.zeros(()))
                    states[partition][STEP] = step.clone().to(partition.device)
        self._link_moments()

    def _link_moments(self) -> None:
        """Link the moments of all weights for DeepSpeed, which does so for the first group only."""
        if self.zero == 3:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        for weights, partition in zip(zero.bit16_groups, self._partitions, strict=True):
            lazy_init_hp_params_optimizer_state(weights, partition, zero.optimizer.state)

    def _set_moment(self, parameter: Tensor, name: str, moment: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero < 3:
            safe_set_full_optimizer_state(parameter, moment, name)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = functional.pad(moment.flatten(), (0, size * data_size() - moment.numel()))
        own = torch.split(padded, size)[data_rank()]
        safe_set_local_optimizer_state(parameter, own, name)


def _elementwise(chosen: ChosenOptimizer, groups: Sequence[Group]) -> Optimizer:
    """Return an optimizer of ZeRO's partitions."""
    optimizer = chosen.factory.build(groups)
    optimizer.register_step_pre_hook(_leave_out_frozen)
    optimizer.register_step_post_hook(_put_back)
    return optimizer


def _leave_out_frozen(optimizer: Optimizer, *_: Any) -> None:
    """Remove parameters with learning rate 0 from an optimizer: it would move their moments."""
    for group in optimizer.param_groups:
        if group["lr"] == 0:
            group["frozen"], group["params"] = group["params"], []


def _put_back(optimizer: Optimizer, *_: Any) -> None:
    """Restore the parameters removed from an optimizer for a step."""
    for group in optimizer.param_groups:
        if "frozen" in group:
            group["params"] = group.pop("frozen")


def check_engine(config: ParallelConfig) -> None:
    """Reject ZeRO if it cannot work, before anything is loaded.

    Raises:
        ConfigError: DeepSpeed, or its library for offloading to disk, is missing.
    """
    if not config.zero:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"parallel.zero = {config.zero} needs DeepSpeed, which is not installed. Install "
            "gkd-core[parallel]"
        )
    if "nvme" in (config.offload_optimizer, config.offload_params):
        _import_deepspeed(pick_device(config.device))
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise ConfigError(
                "offloading to nvme needs libaio, which is not installed here. Install it (Debian: "
                "libaio-dev), or offload to cpu"
            )


class _Trained(nn.Module):
    """All trained weights in one module. Its forward pass is any function that uses them."""

    def __init__(self, student: nn.Module, modules: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.modules_of_methods = modules

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


def _used_elsewhere(student: PreTrainedModel, modules: nn.Module) -> Iterable[nn.Parameter]:
    """Yield weights that are used outside of the forward pass of their module.

    Losses over a vocabulary are computed from the weights of the head, and methods are free to use
    the weights of their modules directly.
    """
    head = student.get_output_embeddings()
    if head is not None:
        yield from head.parameters(recurse=False)
    yield from modules.parameters()


def _keep_recomputed(coordinator: Any) -> None:
    """Make ZeRO-3 keep a checkpointed block's weights from its recomputation to its backward.

    DeepSpeed would release them in between. That is too early if the gradient enters the middle of
    a block, as it does from captured queries: the recomputation then runs inside a backward pass.
    """
    stock = coordinator.release_sub_module

    def release(module: nn.Module, forward: bool = False) -> None:
        if not (forward and torch._C._current_graph_task_id() != -1):
            stock(module, forward=forward)

    coordinator.release_sub_module = release


def _settings(config: RunConfig, student: PreTrainedModel) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, but used only to count samples
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.training.clip,
        "zero_optimization": _zero_settings(config.parallel, student),
        # PyTorch's fused AdamW is as fast on a CPU, and needs no compilation.
        "zero_force_ds_cpu_optimizer": False,
        # DeepSpeed knows PyTorch's AdamW only.
        "zero_allow_untested_optimizer": True,
    }


def _zero_settings(parallel: ParallelConfig, student: PreTrainedModel) -> dict[str, Any]:
    """Return what DeepSpeed divides over ranks, and where it keeps that."""
    zero: dict[str, Any] = {
        "stage": parallel.zero,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        # Only matrices are worth partitioning, not vectors.
        "stage3_param_persistence_threshold": 10 * student.config.hidden_size,
    }
    for name, place in (
        ("offload_optimizer", parallel.offload_optimizer),
        ("offload_param", parallel.offload_params),
    ):
        if place != "none":
            zero[name] = {"device": place, "pin_memory": torch.cuda.is_available()}
        if place == "nvme":
            zero[name]["nvme_path"] = parallel.nvme_path
    if parallel.offload_params == "nvme":
        zero["offload_param"]["buffer_size"] = max(p.numel() for p in student.parameters())
    return zero


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its compilation and its messages."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # it would choose a GPU if there is one
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # A faster all-reduce for inference on CPUs, which takes minutes to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message of DeepSpeed is not its warning of optimizers unknown to it."""
    return "untested optimizer" not in record.getMessage()
