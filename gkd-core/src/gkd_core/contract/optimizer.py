"""`OptimizerFactory`: the base class of what makes the optimizer of a stage."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.contract.method_base import check_options, validate_name
from gkd_core.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from gkd_core.config.schema import ParallelConfig, TrainingConfig
    from gkd_core.models.parts import Part

STEP = "step"
"""The name that optimizers give to the count of their steps."""

ITEM_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class TrainedWeight:
    """A weight to be updated; all weights are in fp32.

    Attributes:
        shape: Its whole shape, as transformers stores it, whatever ranks have pieces of it.
        part: The part of the student that it belongs to; None in an auxiliary module.
    """

    shape: tuple[int, ...]
    part: Part | None = None

    @property
    def is_block_matrix(self) -> bool:
        """Whether the weight is a matrix of a transformer block."""
        return isinstance(self.part, int) and len(self.shape) == 2


@dataclass(frozen=True)
class StateTensor:
    """A tensor of an optimizer's state.

    Attributes:
        shape: Its shape.
        dtype: PyTorch's name of its data type.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class OptimizerFactory:
    """Makes the optimizer of a stage; registered through `gkd_register_optimizers`.

    A subclass sets `name` and `paper` and overrides `build` and `state`. The optimizer that it
    builds is given whole weights: if they are sharded by tensor parallelism or ZeRO, one rank
    gathers a weight and its gradient, updates it, and keeps its state. An `elementwise` optimizer
    is given the shards themselves, which takes no communication.

    Attributes:
        name: The value of `optim.name` that selects it.
        paper: Authors, venue, year and, if there is one, the arXiv number.
        elementwise: The update of each element depends on its own gradients only, and the state
            has tensors of the weight's shape and `step` only. Needed for ZeRO 3 and offloading.
        config: Its options.
        training: The `training` table of the configuration, with the settings that all optimizers
            share: `lr`, `weight_decay`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    elementwise: ClassVar[bool] = False

    class Config(BaseModel):
        """Options; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    training: TrainingConfig

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract.

        Raises:
            PluginError: It does; the message says how.
        """
        super().__init_subclass__()
        where = f"optimizer class {cls.__module__}.{cls.__qualname__}"
        validate_name(getattr(cls, "name", None), where)
        if not getattr(cls, "paper", None):
            raise PluginError(f"{where}: `paper` must say where the optimizer was published")
        if not cls.__doc__:
            raise PluginError(f"{where}: a docstring is needed; `gkd optimizers` shows it")
        check_options(cls.Config, OptimizerFactory.Config, where, "OptimizerFactory")

    def __init__(self, config: Any, training: TrainingConfig) -> None:
        self.config = config
        self.training = training

    def check(self, parallel: ParallelConfig) -> None:
        """Raise `ConfigError` if the optimizer does not work in a layout, before anything is read.

        Default: one that needs whole weights does not work with ZeRO 3, nor with offloading.

        Args:
            parallel: The `parallel` table of the configuration.
        """
        if self.elementwise:
            return
        needs = f"optim.name = '{self.name}' updates whole weights"
        if parallel.zero == 3:
            raise ConfigError(
                f"{needs}, of which parallel.zero = 3 leaves each process a part. Set "
                "parallel.zero = 2 or less, or optim.name = 'adamw'"
            )
        if parallel.offload_optimizer != "none":
            raise ConfigError(
                f"{needs}, which parallel.offload_optimizer = '{parallel.offload_optimizer}' keeps "
                "in flat pieces in host memory. Set it to 'none', or optim.name = 'adamw'"
            )

    def rule(self, weight: TrainedWeight) -> str:
        """Return the name of the rule that updates a weight. Default: one rule for all.

        Args:
            weight: The weight.

        Returns:
            A name that `build` finds as `rule` in the group of the weight.
        """
        return ""

    @abstractmethod
    def build(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """Return an optimizer of some weights, which need not be all.

        Args:
            groups: Parameter groups, as PyTorch's optimizers take them: `params`, `weight_decay`
                (0 for vectors) and `rule`. A group may be given a `rate`: its learning rate,
                relative to `training.lr`. gkd sets `lr` before each step.
        """
        raise NotImplementedError

    @abstractmethod
    def state(self, weight: TrainedWeight) -> Mapping[str, StateTensor]:
        """Return the tensors that the optimizer keeps for a weight, by their names in its state.

        They must be all that is in its state: they are checkpointed, and `gkd plan` counts them.

        Args:
            weight: The weight.
        """
        raise NotImplementedError

    def state_bytes(self, weight: TrainedWeight) -> int:
        """Return the size of a weight's state in bytes."""
        return sum(tensor.nbytes for tensor in self.state(weight).values())
