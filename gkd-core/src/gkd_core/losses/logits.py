"""Logits, computed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LinearLogits:
    """Logits that are not computed yet: a linear map of hidden states.

    Attributes:
        hidden: `[*items, D]`.
        weight: `[V, D]`.
        bias: `[V]`, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> torch.Size:
        """The shape the logits would have."""
        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    def dim(self) -> int:
        """Return the number of dimensions the logits would have."""
        return self.hidden.dim()

    def dense(self) -> Tensor:
        """Return the logits."""
        return functional.linear(self.hidden, self.weight, self.bias)


Logits: TypeAlias = Tensor | LinearLogits
"""Logits `[*items, V]`, computed or not."""
