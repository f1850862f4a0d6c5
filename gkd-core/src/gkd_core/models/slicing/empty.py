"""Stand-ins for modules of a block that has no heads or no neurons left."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Headless(nn.Module):
    """Stands in for the attention of a block without heads, whose context is empty.

    If the output projection is part of the attention module, it stays for the sake of its bias;
    otherwise it receives a context of width 0.
    """

    def __init__(self, attention: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.inner = ""
        for name, child in attention.named_children():
            if child is output:
                self.add_module(name, child)
                self.inner = name

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return the attention output without heads, `[B, S, D]` or `[B, S, 0]`."""
        context = hidden_states.new_empty((*hidden_states.shape[:-1], 0))
        return (getattr(self, self.inner)(context) if self.inner else context), None


class InputlessConv1D(Conv1D):  # type: ignore[misc]
    """A `Conv1D` without inputs, which the stock class does not support; it returns its bias."""

    def __init__(self, stock: Conv1D) -> None:
        super().__init__(stock.nf, 0)
        self.weight, self.bias = stock.weight, stock.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the bias, `[..., out]`."""
        bias: Tensor = self.bias
        return bias.expand(*x.shape[:-1], -1)
