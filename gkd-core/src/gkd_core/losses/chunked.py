"""Losses over a large last dimension, computed a few rows at a time.

A loss over logits needs several fp32 tensors of their size if it is written down plainly. Here a
rule computes value and gradient for a chunk of rows at once; apart from the gradient itself, which
autograd needs anyway, only a chunk is ever held. Rows that do not count are never touched.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_core.data.batch import Items
from gkd_core.losses.term import Term

CHUNK_ELEMENTS = 2**21
"""Elements (rows x vocabulary) of a chunk: 8 MiB in fp32, whatever the vocabulary."""


class Rule(Protocol):
    """A loss of one row of logits against one row of a target, with its gradient."""

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses `[N]` and their gradients `[N, V]` for logits `[N, V]`, in fp32 or fp64."""


def rowwise(rule: Rule, logits: Tensor, target: Tensor, over: Items) -> Term:
    """Apply a rule to every row that counts.

    Args:
        rule: Value and gradient of a chunk of rows.
        logits: `[*over.mask.shape, V]`, with gradient.
        target: The rule's second argument for the same rows: `[*over.mask.shape, ...]`; constant.
        over: The rows and which of them count.
    """
    if logits.shape[:-1] != over.mask.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not have one row per {over.kind} "
            f"({tuple(over.mask.shape)})"
        )
    flat = logits.flatten(0, -2)
    targets = target.detach().flatten(0, over.mask.dim() - 1)
    values = _Rowwise.apply(flat, targets, over.index, rule)  # type: ignore[no-untyped-call]
    return Term(values.view(over.mask.shape), over)


class _Rowwise(torch.autograd.Function):
    """Value and gradient in one pass over the rows, so that backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, rows: Tensor, rule: Rule) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        values = logits.new_zeros(len(logits), dtype=dtype)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if wanted else None
        for chunk in torch.split(rows, max(1, CHUNK_ELEMENTS // logits.shape[-1])):
            part = target[chunk]
            part = part.to(dtype) if part.is_floating_point() else part
            values[chunk], slope = rule(logits[chunk].to(dtype), part)
            if gradient is not None:
                gradient[chunk] = slope.to(logits.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.unsqueeze(-1).to(gradient.dtype), None, None, None
