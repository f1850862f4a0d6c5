"""The choices and rewards of a policy until it learns from them.

The choices of step t change the student at the end of t; its losses in step t + 1 are the reward,
so the policy learns from t in step t + 2. Only the score of the choices is kept, the sum of
grad log pi(a): for a policy that is linear in its state, it has the shape of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gkd_core.api import sum_over_ranks


class Episode:
    """Scores and rewards of recent steps, summed over micro-batches and ranks, in fp64.

    Args:
        widths: State size of each policy.
        memory: Decay of the running mean of rewards; 1 keeps the mean at 0.
    """

    def __init__(self, widths: Sequence[int], memory: float) -> None:
        self._widths = list(widths)
        self._memory = memory
        self._index: int | None = None
        self._baseline: float | None = None
        self._open: Tensor | None = None
        self._chosen = torch.zeros(sum(widths), dtype=torch.float64)
        self._due = torch.zeros(sum(widths), dtype=torch.float64)

    def begin(self, index: int, device: torch.device) -> None:
        """Advance to a step if it is new; collective: all ranks must call this."""
        if index != self._index:
            self._close()
            self._index = index
            self._open = torch.zeros(sum(self._widths) + 2, dtype=torch.float64, device=device)

    def choose(self, policy: int, score: Tensor) -> None:
        """Record the score of one policy's choices in a micro-batch.

        Args:
            policy: Index of the policy.
            score: The sum of grad log pi(a) over the samples, `[width]`.
        """
        assert self._open is not None, "a step has begun"
        begin = sum(self._widths[:policy])
        self._open[begin : begin + len(score)] += score

    def reward(self, total: Tensor, samples: int) -> None:
        """Record the rewards of a micro-batch.

        Args:
            total: The sum of the rewards of its samples, a scalar.
            samples: Their number.
        """
        assert self._open is not None, "a step has begun"
        self._open[-2] += total
        self._open[-1] += samples

    def due(self, device: torch.device) -> Sequence[Tensor]:
        """Return the ascent direction of each policy's weights in this step, `[width]` each."""
        return torch.split(self._due.to(device), self._widths)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in JSON types; collective: all ranks must call this."""
        self._close()
        return {
            "baseline": self._baseline,
            "chosen": self._chosen.tolist(),
            "due": self._due.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        self._baseline = state["baseline"]
        self._chosen = torch.tensor(state["chosen"], dtype=torch.float64)
        self._due = torch.tensor(state["due"], dtype=torch.float64)

    def _close(self) -> None:
        """End a step: the previous step's choices become due with this step's reward."""
        if self._open is None:
            return
        sums = sum_over_ranks({"sums": self._open})["sums"].cpu()
        self._open = None
        samples = max(float(sums[-1]), 1.0)
        reward = float(sums[-2]) / samples
        if self._baseline is None:
            self._baseline = 0.0 if self._memory == 1 else reward
        self._due = (reward - self._baseline) * self._chosen
        self._chosen = sums[:-2] / samples
        self._baseline = self._memory * self._baseline + (1 - self._memory) * reward
