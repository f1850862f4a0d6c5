"""`Step`: the position in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Step:
    """The position in training, and a generator for random draws.

    Attributes:
        index: Optimizer steps completed in this stage.
        total: Number of optimizer steps of this stage.
        epoch: Passes over the training data completed in this stage.
        stage: Name of the stage.
        generator: Random number generator of the method; identical on all ranks, checkpointed.
    """

    index: int
    total: int
    epoch: int
    stage: str
    generator: torch.Generator
