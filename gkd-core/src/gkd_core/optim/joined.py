"""`JoinedOptimizer`: several optimizers, for different weights, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """Optimizers of different weights that share their groups and their state.

    Args:
        optimizers: The optimizers; no weight is in two of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for optimizer in self.optimizers:
            optimizer.step()
