"""Losses whose gradient is computed together with their value, in the forward pass.

A loss that is computed in chunks can compute its gradient while the chunk is in memory. Nothing of
the size of the logits or of the attention scores is then kept until backward, which is one
multiplication by the upstream gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gradients = list[Tensor | None]
"""One gradient per input, None where it is not wanted."""


class ItemLosses(Protocol):
    """A computation of one loss per item, with the gradient of their weighted sum."""

    @property
    def mixes(self) -> bool:
        """Whether a gradient sums over items, like that of a weight that all items share.

        If not, there is a single input, and its leading dimensions are those of the items.
        """

    def __call__(
        self,
        inputs: Sequence[Tensor | None],
        fixed: Sequence[Tensor | None],
        weights: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Gradients]:
        """Return the losses `[*items]`, and the gradients of their sum.

        Args:
            inputs: Tensors to differentiate.
            fixed: Constant tensors they are compared with.
            weights: Factors of the losses in the sum, `[*items]`; all 1 if None.
            wanted: Whether the gradient of each input is wanted.
        """


def differentiable(
    losses: ItemLosses, inputs: Sequence[Tensor | None], fixed: Sequence[Tensor | None]
) -> Tensor:
    """Return the losses `[*items]`, differentiable once with respect to the inputs.

    `losses` itself should hold no large tensors: it lives until backward. The fixed tensors are
    saved for backward only if it may need them.

    The gradients are computed here, as if every item had weight 1. A mean gives all items the same
    weight, so that backward is a multiplication. Where weights differ and a gradient sums over
    items, backward computes it again with the true weights.
    """
    if not torch.is_grad_enabled():
        return losses(inputs, fixed, None, [False] * len(inputs))[0]
    values: Tensor = _InForward.apply(losses, fixed, *inputs)  # type: ignore[no-untyped-call]
    return values


def scaled(values: Tensor, factor: float | Tensor) -> Tensor:
    """Return values times a constant; its backward keeps equal weights recognizable."""
    result: Tensor = _Scale.apply(values, factor)  # type: ignore[no-untyped-call]
    return result


class _InForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, losses: ItemLosses, fixed: Sequence[Tensor | None], *inputs: Tensor | None
    ) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        values, gradients = losses(inputs, fixed, None, wanted)
        again = losses.mixes and any(wanted)
        ctx.losses = losses if again else None
        ctx.save_for_backward(*gradients, *((*inputs, *fixed) if again else ()))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        saved, count = ctx.saved_tensors, len(wanted)
        gradients, inputs, fixed = saved[:count], saved[count : 2 * count], saved[2 * count :]
        if ctx.losses is None:
            return None, None, _times(gradients[0], outer.unsqueeze(-1))
        weight = _common_value(outer)
        if weight is not None:
            return None, None, *(g if g is None else _times(g, weight) for g in gradients)
        return None, None, *ctx.losses(inputs, fixed, outer, wanted)[1]


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return values * factor

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        weight = _common_value(outer)
        if weight is None:
            return outer * ctx.factor, None
        return (weight * ctx.factor).expand(outer.shape), None


def _common_value(weights: Tensor) -> Tensor | None:
    """Return the single number that fills a tensor, if its strides show that there is one.

    Comparing values would synchronize with the device; the gradient of a sum is an expanded scalar.
    """
    dimensions = zip(weights.shape, weights.stride(), strict=True)
    if weights.numel() and all(size == 1 or stride == 0 for size, stride in dimensions):
        return weights[(0,) * weights.dim()]
    return None


def _times(gradient: Tensor, weights: Tensor) -> Tensor:
    """Multiply in the precision of the weights, to which a 0-dim tensor would not promote."""
    return torch.mul(gradient, weights.reshape(weights.shape or 1), out=torch.empty_like(gradient))
