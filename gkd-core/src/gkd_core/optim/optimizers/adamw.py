"""`AdamW`: the default optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gkd_core.contract.optimizer import STEP, OptimizerFactory, StateTensor, TrainedWeight

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from gkd_core.config.schema import TrainingConfig


class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay: a first and a second moment of each gradient.

    Its settings are in the `training` table: `beta1`, `beta2`, `eps`.
    """

    name = "adamw"
    paper = "Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101"
    elementwise = True

    def build(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """Return PyTorch's AdamW."""
        return fused_adamw(groups, self.training)

    def state(self, weight: TrainedWeight) -> Mapping[str, StateTensor]:
        """Return both moments and the step count."""
        return adamw_state(weight)


def fused_adamw(groups: Sequence[dict[str, Any]], training: TrainingConfig) -> Optimizer:
    """Return PyTorch's AdamW with the settings of the `training` table."""
    from torch.optim import AdamW as TorchAdamW

    return TorchAdamW(
        groups,
        lr=training.lr,
        betas=(training.beta1, training.beta2),
        eps=training.eps,
        fused=True,
    )


def adamw_state(weight: TrainedWeight) -> Mapping[str, StateTensor]:
    """Return the state that PyTorch's AdamW keeps for a weight."""
    moment = StateTensor(weight.shape)
    return {"exp_avg": moment, "exp_avg_sq": moment, STEP: StateTensor(())}
