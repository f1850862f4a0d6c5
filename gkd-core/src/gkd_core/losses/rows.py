"""Rows of logits, given or computed when they are needed, and where their gradient goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.gradient import Gradients
from gkd_core.losses.logits import Logits


class LogitRows(Protocol):
    """LogitRows `[N, V]` that are differentiated with respect to what they are made of."""

    def at(self, index: Tensor) -> Tensor:
        """Return the rows at int64 `[n]`, as a new tensor."""

    def zeros(self, wanted: Sequence[bool]) -> Gradients:
        """Return empty gradients."""

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Add what the gradient `[n, V]` of some rows contributes."""


class GivenRows:
    """LogitRows of a tensor."""

    def __init__(self, tensor: Tensor, dimensions: int) -> None:
        """Make rows of a tensor whose first `dimensions` dimensions are those of the items."""
        self.shape = tensor.shape
        self.rows = tensor.detach().flatten(0, dimensions - 1)

    def at(self, index: Tensor) -> Tensor:
        """Return the rows at int64 `[n]`."""
        return self.rows[index]

    def zeros(self, wanted: Sequence[bool]) -> Gradients:
        """Return an empty gradient of the tensor."""
        return [self.rows.new_zeros(self.shape) if wanted[0] else None]

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Store the gradient of some rows."""
        if gradients[0] is not None:
            gradients[0].view(self.rows.shape)[index] = slope.to(self.rows.dtype)


class LinearRows:
    """LogitRows that are computed: hidden states times the weight of an LM head."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Compute rows in `dtype`."""
        self.shape = hidden.shape
        self.hidden = hidden.detach().flatten(0, -2)
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def at(self, index: Tensor) -> Tensor:
        """Compute the rows at int64 `[n]`."""
        return functional.linear(self._hidden(index), self.weight, self.bias)

    def zeros(self, wanted: Sequence[bool]) -> Gradients:
        """Return empty gradients of hidden states, weight and bias, the last two at least fp32."""
        shared = torch.promote_types(self.weight.dtype, torch.float32)
        return [
            self.hidden.new_zeros(self.shape) if wanted[0] else None,
            torch.zeros_like(self.weight, dtype=shared) if wanted[1] else None,
            self.weight.new_zeros(len(self.weight), dtype=shared) if wanted[2] else None,
        ]

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Add what the gradient of some rows contributes to each."""
        hidden, weight, bias = gradients
        if bias is not None:
            bias += slope.sum(0)
        slope = slope.to(self.weight.dtype)
        if hidden is not None:
            hidden.view(self.hidden.shape)[index] = (slope @ self.weight).to(hidden.dtype)
        if weight is not None and weight.dtype == slope.dtype:
            weight.addmm_(slope.T, self._hidden(index))
        elif weight is not None:
            weight += slope.T @ self._hidden(index)

    def _hidden(self, index: Tensor) -> Tensor:
        return self.hidden[index].to(self.weight.dtype)


def precision(logits: Logits) -> torch.dtype:
    """Return the type in which logits are, or under the ambient autocast would be, computed."""
    if isinstance(logits, Tensor):
        return logits.dtype
    device = logits.hidden.device.type
    dtype = torch.promote_types(logits.hidden.dtype, logits.weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype
