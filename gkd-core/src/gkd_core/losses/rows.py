"""Rows of logits, given or computed on demand, and the accumulation of their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.gradient import Gradients
from gkd_core.losses.logits import Logits
from gkd_core.losses.top_k import TopKLogits


class LogitRows(Protocol):
    """Rows of logits `[N, V]`, differentiated with respect to the tensors they consist of."""

    def at(self, index: Tensor) -> Tensor:
        """Return the rows at int64 `[n]`, as a new tensor."""

    def zeros(self, wanted: Sequence[bool]) -> Gradients:
        """Return zero gradients."""

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Add the contribution of the gradient `[n, V]` of some rows."""


class GivenRows:
    """Rows of a dense logits tensor."""

    def __init__(self, tensor: Tensor, dimensions: int) -> None:
        """Take a tensor whose first `dimensions` dimensions are those of the items."""
        self.shape = tensor.shape
        self.rows = tensor.detach().flatten(0, dimensions - 1)

    def at(self, index: Tensor) -> Tensor:
        """Return the rows at int64 `[n]`."""
        return self.rows[index]

    def zeros(self, wanted: Sequence[bool]) -> Gradients:
        """Return a zero gradient of the tensor."""
        return [self.rows.new_zeros(self.shape) if wanted[0] else None]

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Store the gradient of some rows."""
        if gradients[0] is not None:
            gradients[0].view(self.rows.shape)[index] = slope.to(self.rows.dtype)


class LinearRows:
    """Rows of logits computed on demand: hidden states times the weight of a head."""

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
        """Return zero gradients of hidden states, weight and bias, the last two at least fp32."""
        shared = torch.promote_types(self.weight.dtype, torch.float32)
        return [
            self.hidden.new_zeros(self.shape) if wanted[0] else None,
            torch.zeros_like(self.weight, dtype=shared) if wanted[1] else None,
            self.weight.new_zeros(len(self.weight), dtype=shared) if wanted[2] else None,
        ]

    def add(self, gradients: Gradients, index: Tensor, slope: Tensor) -> None:
        """Add the contribution of the gradient of some rows to each gradient."""
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
    """Return the dtype of logits; if not yet computed, the one that the ambient autocast gives."""
    if isinstance(logits, Tensor):
        return logits.dtype
    if isinstance(logits, TopKLogits):
        return logits.log_probs.dtype
    device = logits.hidden.device.type
    dtype = torch.promote_types(logits.hidden.dtype, logits.weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype
