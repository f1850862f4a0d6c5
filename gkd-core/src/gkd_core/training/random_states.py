"""The states of the random number generators of a stage: torch's, and one of each method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage


def random_states(stage: Stage) -> dict[str, Tensor]:
    """Return the states of all generators; none is read from a GPU."""
    states = {"cpu": torch.get_rng_state()}
    if stage.engine.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(stage.engine.device)
    for name, generator in stage.objective.generators().items():
        states[f"method.{name}"] = generator.get_state()
    return states


def restore_random(stage: Stage, states: Mapping[str, Tensor]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and stage.engine.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], stage.engine.device)
    for name, generator in stage.objective.generators().items():
        generator.set_state(states[f"method.{name}"])
