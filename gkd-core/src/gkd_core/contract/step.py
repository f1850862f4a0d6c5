"""`Step`: where training stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Step:
    """Where training stands.

    Attributes:
        index: Optimizer steps done in this stage.
        total: Optimizer steps of this stage.
        epoch: Passes over the training data done in this stage.
        stage: Name of the stage.
        generator: Source of the method's random draws; equal on all ranks, saved in checkpoints.
    """

    index: int
    total: int
    epoch: int
    stage: str
    generator: torch.Generator
