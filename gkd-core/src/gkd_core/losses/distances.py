"""Distances between vectors, one per item: the mean over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses.term import Term


def mse(student: Tensor, teacher: Tensor, over: Items) -> Term:
    """Mean squared error over the last dimension, of features or of logits.

    Args:
        student: `[*items, D]`.
        teacher: `[*items, D]`, constant.
        over: The items averaged over.

    Raises:
        ValueError: The shapes differ.
    """
    s, t = _pair(student, teacher)
    return _term((s - t).square().mean(-1), over)


def huber(student: Tensor, teacher: Tensor, over: Items, delta: float = 1.0) -> Term:
    """Mean Huber loss over the last dimension: half the squared difference up to `delta`.

    Beyond `delta` it is linear. Other arguments as for `mse`.
    """
    s, t = _pair(student, teacher)
    return _term(functional.huber_loss(s, t, reduction="none", delta=delta).mean(-1), over)


def normalized_mse(student: Tensor, teacher: Tensor, over: Items) -> Term:
    """Mean squared error of the vectors scaled to length 1 (PKD, Sun et al., 2019, Eq. 7).

    Invariant to positive scaling of either vector; D times the value lies in [0, 4]. Arguments as
    for `mse`.
    """
    s, t = _pair(student, teacher)
    difference = functional.normalize(s, dim=-1) - functional.normalize(t, dim=-1)
    return _term(difference.square().mean(-1), over)


def cosine(student: Tensor, teacher: Tensor, over: Items) -> Term:
    """One minus the cosine similarity, in [0, 2]. Arguments as for `mse`."""
    s, t = _pair(student, teacher)
    return _term(1 - functional.cosine_similarity(s, t, dim=-1), over)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to the precision of the computation, and detach the teacher."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} "
            "differ in shape; a projection may be needed"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _term(values: Tensor, over: Items) -> Term:
    return Term(torch.where(over.mask, values, 0.0), over)
