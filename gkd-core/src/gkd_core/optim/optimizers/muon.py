"""`Muon`: orthogonalized momentum for the matrices of the blocks, AdamW for all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from gkd_core.contract.optimizer import OptimizerFactory, StateTensor, TrainedWeight
from gkd_core.optim.optimizers.adamw import adamw_state, fused_adamw

if TYPE_CHECKING:
    from torch.optim import Optimizer

MUON, ADAMW = "muon", "adamw"


class Muon(OptimizerFactory):
    """Momentum whose singular values are brought near 1 by a Newton-Schulz iteration.

    It updates the matrices of the student's blocks. AdamW, with the settings of the `training`
    table, updates the embedding, the head, vectors and auxiliary modules.
    """

    name = "muon"
    paper = "Jordan et al., 2024; Liu et al., 2025, arXiv:2502.16982"

    class Config(OptimizerFactory.Config):
        """Options; the defaults are those of Jordan et al., except `scale`."""

        momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="Momentum.")
        nesterov: bool = Field(True, description="Use Nesterov momentum.")
        iterations: Annotated[int, Field(gt=0, lt=100)] = Field(
            5, description="Newton-Schulz iterations."
        )
        scale: Literal["adamw", "shape"] = Field(
            "adamw",
            description="Scale of an update: `adamw`: its root mean square is that of AdamW's, so "
            "that both can share `training.lr` (Liu et al.); `shape`: the square root of rows "
            "over columns, at least 1 (Jordan et al.), for a rate near 0.02.",
        )
        adamw_rate: Annotated[float, Field(gt=0)] = Field(
            1.0, description="Learning rate of AdamW's weights, relative to `training.lr`."
        )

    config: Config

    def rule(self, weight: TrainedWeight) -> str:
        """Return the name of the optimizer that updates a weight."""
        return MUON if weight.is_block_matrix else ADAMW

    def build(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """Return PyTorch's Muon and AdamW as one optimizer."""
        from gkd_core.optim.joined import JoinedOptimizer

        matrices = [group for group in groups if group["rule"] == MUON]
        others = [g | {"rate": self.config.adamw_rate} for g in groups if g["rule"] == ADAMW]
        made = [self._muon(matrices)] if matrices else []
        return JoinedOptimizer([*made, *([fused_adamw(others, self.training)] if others else [])])

    def state(self, weight: TrainedWeight) -> Mapping[str, StateTensor]:
        """Return the momentum of a matrix, or the state of AdamW."""
        if self.rule(weight) == MUON:
            return {"momentum_buffer": StateTensor(weight.shape)}
        return adamw_state(weight)

    def _muon(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        from torch.optim import Muon as TorchMuon

        options = self.config
        return TorchMuon(
            groups,
            lr=self.training.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            ns_steps=options.iterations,
            adjust_lr_fn="match_rms_adamw" if options.scale == "adamw" else "original",
        )
