"""AdamW with moments in 8 bits."""

import functools
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gkd_core.api import (
    ConfigError,
    OptimizerFactory,
    ParallelConfig,
    StateTensor,
    TrainedWeight,
    hookimpl,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer

BLOCK = 256
"""Elements whose moments share a scale."""

STEP, MAPS = "step", ("qmap1", "qmap2")


class AdamW8bit(OptimizerFactory):
    """AdamW whose moments are codes of 8 bits and a scale for every 256 of them."""

    name = "adamw-8bit"
    paper = "Dettmers et al., ICLR 2022, arXiv:2110.02861"

    class Config(OptimizerFactory.Config):
        """Options; the default is that of bitsandbytes."""

        min_size: Annotated[int, Field(gt=0)] = Field(
            4096, description="Weights with fewer elements keep moments of 32 bits."
        )

    config: Config

    def check(self, parallel: ParallelConfig) -> None:
        """Reject a run if bitsandbytes is missing."""
        super().check(parallel)
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"optim.name = '{self.name}' needs bitsandbytes, which is not installed. Install "
                "it, or set optim.name = 'adamw'"
            )

    def build(self, groups: Sequence[dict[str, Any]]) -> "Optimizer":
        """Return the optimizer of bitsandbytes."""
        training = self.training
        made: Optimizer = _optimizer_class()(
            groups,
            lr=training.lr,
            betas=(training.beta1, training.beta2),
            eps=training.eps,
            min_8bit_size=self.config.min_size,
        )
        return made

    def state(self, weight: TrainedWeight) -> Mapping[str, StateTensor]:
        """Return both moments, their scales if they are codes, and the step count."""
        size = math.prod(weight.shape)
        step = {STEP: StateTensor(())}
        if size < self.config.min_size:
            moment = StateTensor(weight.shape)
            return {"state1": moment, "state2": moment} | step
        codes, scales = StateTensor(weight.shape, "uint8"), StateTensor((-(-size // BLOCK),))
        return {"state1": codes, "absmax1": scales, "state2": codes, "absmax2": scales} | step


@functools.cache
def _optimizer_class() -> Any:
    """Return the optimizer of bitsandbytes with tensors of each weight as its only state."""
    import torch
    from bitsandbytes.optim import AdamW8bit as Stock

    class TensorState(Stock):  # type: ignore[misc]
        """Keeps the step count as a tensor, and the maps from codes to values out of the state."""

        def update_step(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
            """Update a weight."""
            state = self.state[p]
            state[STEP] = int(state[STEP])
            maps = (self.name2qmap[name].to(p.device) for name in ("dynamic", "udynamic"))
            state.update(zip(MAPS, maps, strict=True))
            super().update_step(group, p, gindex, pindex)
            state[STEP] = torch.tensor(float(state[STEP]))
            for name in MAPS:
                del state[name]

    return TensorState


@hookimpl
def gkd_register_optimizers() -> Iterable[type[OptimizerFactory]]:
    """Register the optimizer."""
    return [AdamW8bit]
