"""Divergences between the distributions that two rows of logits stand for.

All compute `log_softmax` in fp32, ignore columns a teacher excludes with -inf, and are scaled by
T^2, which keeps the size of the gradient independent of the temperature (Hinton et al., 2015,
section 2.1).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gkd_core.data.batch import Items
from gkd_core.losses.chunked import rowwise
from gkd_core.losses.term import Term


def kl(
    student: Tensor, teacher: Tensor, over: Items, temperature: float = 1.0, scale: bool = True
) -> Term:
    """Kullback-Leibler divergence KL(teacher || student) of the softened distributions.

    Zero where they are equal.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Multiply by T^2.
    """
    _same_width(student, teacher)
    return rowwise(partial(_kl, temperature=temperature, scale=scale), student, teacher, over)


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, over: Items, temperature: float = 1.0, scale: bool = True
) -> Term:
    """Cross-entropy of the student under the teacher's softened distribution.

    `kl` plus the teacher's entropy: another value, the same gradient. Arguments as for `kl`.
    """
    _same_width(student, teacher)
    return rowwise(
        partial(_soft_cross_entropy, temperature=temperature, scale=scale), student, teacher, over
    )


def cross_entropy(logits: Tensor, labels: Tensor, over: Items) -> Term:
    """Cross-entropy of the true classes or tokens.

    Args:
        logits: `[*items, V]`.
        labels: int64 `[*items]`; where an item does not count its label is not looked at.
        over: The items averaged over.
    """
    return rowwise(_cross_entropy, logits, labels, over)


def _kl(logits: Tensor, target: Tensor, temperature: float, scale: bool) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    log_p = torch.log_softmax(target / temperature, dim=-1)
    p = log_p.exp()
    value = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
    factor = temperature**2 if scale else 1.0
    return factor * value, (log_q.exp_() - p).mul_(factor / temperature)


def _soft_cross_entropy(
    logits: Tensor, target: Tensor, temperature: float, scale: bool
) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    p = torch.softmax(target / temperature, dim=-1)
    value = -torch.where(p > 0, p * log_q, 0.0).sum(-1)
    factor = temperature**2 if scale else 1.0
    return factor * value, (log_q.exp_() - p).mul_(factor / temperature)


def _cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(logits, dim=-1)
    index = target.unsqueeze(-1)
    value = -log_q.gather(-1, index).squeeze(-1)
    slope = log_q.exp_()
    return value, slope.scatter_add_(-1, index, -torch.ones_like(slope[..., :1]))


def _same_width(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape"
        )
