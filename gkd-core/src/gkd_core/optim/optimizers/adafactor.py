"""`Adafactor`: second moments in factored form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gkd_core.contract.optimizer import STEP, OptimizerFactory, StateTensor, TrainedWeight

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Adafactor(OptimizerFactory):
    """The second moment of a matrix as the product of its row and column means; no first moment.

    A step is relative to the root mean square of the weight: `training.lr` bounds this ratio,
    so rates from 1e-3 to 1e-2 are usual. `beta1`, `beta2` and `eps` of the `training` table
    do not apply.
    """

    name = "adafactor"
    paper = "Shazeer and Stern, ICML 2018, arXiv:1804.04235"

    class Config(OptimizerFactory.Config):
        """Options; the defaults are the paper's."""

        beta2_decay: Annotated[float, Field(le=0)] = Field(
            -0.8, description="Power of the step by which the second moment forgets less and less."
        )
        eps1: Annotated[float, Field(ge=0)] | None = Field(
            None,
            description="Lower bound of the root of the second moment. Default: the precision of "
            "fp32, 1.2e-7.",
        )
        eps2: Annotated[float, Field(ge=0)] = Field(
            1e-3, description="Lower bound of the root mean square of a weight."
        )
        clip_threshold: Annotated[float, Field(ge=1)] = Field(
            1.0, description="Maximum root mean square of an update, before the learning rate."
        )

    config: Config

    def build(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """Return PyTorch's Adafactor."""
        from torch.optim import Adafactor as TorchAdafactor

        options = self.config
        return TorchAdafactor(
            groups,
            lr=self.training.lr,
            beta2_decay=options.beta2_decay,
            eps=(options.eps1, options.eps2),
            d=options.clip_threshold,
            foreach=False,  # one weight at a time, whether it is sharded or not
        )

    def state(self, weight: TrainedWeight) -> Mapping[str, StateTensor]:
        """Return a row and a column for a matrix, a whole second moment for a vector."""
        shape, step = weight.shape, {STEP: StateTensor(())}
        if len(shape) < 2:
            return {"variance": StateTensor(shape)} | step
        row, column = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
        return {"row_var": StateTensor(row), "col_var": StateTensor(column)} | step
