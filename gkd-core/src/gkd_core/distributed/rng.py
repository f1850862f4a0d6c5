"""Random draws on the ranks of a tensor group.

All ranks draw from equal generators, so that dropout on replicated tensors is equal. Dropout on
divided tensors (a rank's own attention heads and feed-forward units) must differ: between a
column-parallel and a row-parallel layer, each rank draws from its own generator (Megatron-LM,
Shoeybi et al., 2019, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


class RngTracker:
    """The generator in use between column-parallel layers and the row-parallel one after them.

    The seed is drawn from the common generator, so that only the state of that generator must be
    restored by a checkpoint, or by a recomputation in the backward pass.

    Args:
        rank: This process's rank in the tensor group.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._opener: object = None
        self._common: Tensor | None = None

    def begin(self, opener: object, device: torch.device) -> None:
        """Draw from this rank's own generator from now on.

        Args:
            opener: The layer that calls this. The first one counts until it calls again, because a
                recomputation may stop before `end`.
            device: Device of the generator.
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
