"""Random draws on the ranks of a tensor group.

They draw from equal generators, so that dropout of what all of them have is equal. What each has a
share of, its own attention heads and feed-forward units, must not be dropped out alike: between a
column-parallel and a row-parallel map a rank draws from a generator of its own (Megatron-LM,
Shoeybi et al., 2019, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


class RngTracker:
    """Draws between one or more column-parallel maps and the row-parallel one after them.

    The seed is drawn from the common generator: so the state of that generator is all that a
    checkpoint, or a recomputation in the backward pass, has to bring back.

    Args:
        rank: This process's place in the tensor group.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._opener: object = None
        self._common: Tensor | None = None

    def begin(self, opener: object, device: torch.device) -> None:
        """Draw from a generator of this rank's own from now on.

        Args:
            opener: The map that calls this. The first one counts until it calls again: a
                recomputation may end before `end`.
            device: Where draws are made.
        """
        if self._common is not None and opener is not self._opener:
            return
        self._opener = opener
        seed = int(torch.randint(2**62, (), device="cpu"))
        generator = _generator(device)
        self._common = generator.get_state()
        generator.manual_seed(seed + self._rank)

    def end(self, device: torch.device) -> None:
        """Draw from the common generator again."""
        if self._common is not None:
            _generator(device).set_state(self._common)
            self._common = None


def _generator(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[device.index or 0]
