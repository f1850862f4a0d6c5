"""Losses of a prediction of any type: classes, tokens or a value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses import rules
from gkd_core.losses.chunked import rowwise
from gkd_core.losses.distances import mse
from gkd_core.losses.divergences import cross_entropy, kl
from gkd_core.losses.logits import Logits, match_shards, match_vocabulary
from gkd_core.losses.term import Term
from gkd_core.losses.top_k import TopKLogits

Divergence: TypeAlias = Callable[[Logits, Logits, Items, float, bool], Term]
"""A divergence of student and teacher logits: `kl`, `reverse_kl`, `partial(js, beta=0.1)`, ..."""


def soft_labels(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float,
    scale: bool = True,
    divergence: Divergence = kl,
) -> Term:
    """Divergence from the teacher's distribution; squared error for values and vectors.

    With independent classes (multi-label), it is the mean over the classes of the divergence
    between the two probabilities of a yes, both at temperature T.

    Vocabularies of language models may be padded to different widths: columns that the student
    lacks are cut, and those that the teacher lacks get no probability.

    Args:
        student: Logits `[*items, C]`.
        teacher: Logits `[*items, C]`; in language modeling C may differ.
        over: The items averaged over.
        temperature: T of the divergence.
        scale: Whether to multiply the divergence by T^2.
        divergence: The divergence between the distributions.
    """
    if over.output == "binary":
        return _soft_binary(_dense(student), _dense(teacher), over, temperature, scale, divergence)
    if over.output in ("value", "vector") or student.shape[-1] == 1:
        return mse(_dense(student), _dense(teacher), over)
    if over.mask.dim() == 2:
        teacher = match_vocabulary(teacher, student.shape[-1])
    return divergence(student, teacher, over, temperature, scale)


def hard_labels(logits: Logits, labels: Tensor, over: Items) -> Term:
    """Cross-entropy of the labels; squared error where the labels are values.

    With independent classes (multi-label), it is the mean binary cross-entropy over the classes.

    Args:
        logits: `[*items, C]`.
        labels: int64 `[*items]`, floating point for a regression (C = 1), or marks `[*items, C]`.
        over: The items averaged over.
    """
    if over.output == "binary":
        return _hard_binary(_dense(logits), labels, over)
    if labels.is_floating_point():
        return mse(_dense(logits), labels.unsqueeze(-1), over)
    return cross_entropy(logits, labels, over)


def logits_mse(student: Logits, teacher: Logits, over: Items, factor: float = 1.0) -> Term:
    """Mean of (z_s - factor z_t)^2 over the columns that both have (Ba and Caruana, 2014).

    Args:
        student: Logits z_s, `[*items, C]`.
        teacher: Logits z_t, `[*items, C]`, constant; in language modeling C may differ.
        over: The items averaged over.
        factor: Multiplier of the teacher's logits.
    """
    if isinstance(teacher, TopKLogits):
        teacher.refuse("the squared error of logits")
    known = match_shards(match_vocabulary(teacher, student.shape[-1]), student)
    return rowwise(partial(rules.mse, factor=factor), student, known, over)


def _soft_binary(
    student: Tensor,
    teacher: Tensor,
    over: Items,
    temperature: float,
    scale: bool,
    divergence: Divergence,
) -> Term:
    # A sigmoid is a softmax over the logit and 0.
    classes = Items.where(over.kind, over.mask.unsqueeze(-1).expand(student.shape))
    both = [torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (student, teacher)]
    term = divergence(both[0], both[1], classes, temperature, scale)
    return Term(term.values.mean(-1), over)


def _hard_binary(logits: Tensor, labels: Tensor, over: Items) -> Term:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    )
    return Term(torch.where(over.mask, losses.mean(-1), 0.0), over)


def _dense(logits: Logits) -> Tensor:
    return logits if isinstance(logits, Tensor) else logits.dense()
