"""Values and gradients of row losses over logits, in closed form, at temperature 1.

A rule receives logits `[..., V]` and a target for each row in fp32 or fp64, and returns the losses
`[...]` and a function for their gradients with respect to the logits, `[..., V]`. p is the
teacher's distribution, q the student's; for a loss with the derivative g with respect to q, the
gradient with respect to the logits is q (g - sum of q g).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from gkd_core.losses.vocabulary import Vocabulary

MASKED = -1e4
"""Scores this low are masked: additive masks in half precision reach only -65504."""

LEAST = -128.0
"""A log-probability that no column of a head has."""

HALVINGS = 48
"""Steps of a bisection from `LEAST` to 0, beyond the precision of fp32."""

Slope = Callable[[], Tensor]
"""Computes the gradients `[..., V]`; called at most once, because it may reuse memory."""


Rule: TypeAlias = Callable[[Tensor, Tensor, Vocabulary], tuple[Tensor, Slope]]
"""The losses of rows of logits against a target, and a function for their gradients."""


def kl(logits: Tensor, target: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Slope]:
    """KL(p || q)."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    p = log_p.exp()
    return vocabulary.sum(log_p.sub_(log_q).mul_(p)), lambda: log_q.exp_().sub_(p)


def soft_cross_entropy(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Slope]:
    """Minus the expectation of log q under p."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    p = log_p.exp_()
    return -vocabulary.sum(p * log_q), lambda: log_q.exp_().sub_(p)


def reverse_kl(logits: Tensor, target: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Slope]:
    """KL(q || p), q restricted to the columns that the teacher does not exclude."""
    allowed = logits.masked_fill(target == -math.inf, -math.inf)
    log_q, log_p = vocabulary.log_softmax(allowed, target)
    difference = log_q - log_p
    q = log_q.exp_()
    value = vocabulary.sum(q * difference)
    return value, lambda: difference.sub_(value.unsqueeze(-1)).mul_(q)


def js(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary, *, beta: float
) -> tuple[Tensor, Slope]:
    """Beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    log_m = _log_mixture(log_p, log_q, beta)
    q, surplus = log_q.exp(), log_q.sub_(log_m)
    towards_q = vocabulary.sum(q * surplus)
    towards_p = vocabulary.sum(log_p.exp().mul_(log_p.sub_(log_m)))
    value = beta * towards_p + (1 - beta) * towards_q
    return value, lambda: surplus.sub_(towards_q.unsqueeze(-1)).mul_(q).mul_(1 - beta)


def total_variation(logits: Tensor, target: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Slope]:
    """Half the sum of |q - p|."""
    q, p = (log.exp_() for log in vocabulary.log_softmax(logits, target))
    difference = p.sub_(q).neg_()
    value = vocabulary.sum(difference.abs()) / 2
    return value, lambda: _through_softmax(difference.sign_().div_(2), q, vocabulary)


def skew_kl(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary, *, alpha: float
) -> tuple[Tensor, Slope]:
    """KL(p || m), m = alpha p + (1 - alpha) q."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    difference = log_p - _log_mixture(log_p, log_q, alpha)
    value = vocabulary.sum(log_p.exp_().mul_(difference))
    return value, lambda: _through_softmax(
        difference.exp_().mul_(alpha - 1), log_q.exp_(), vocabulary
    )


def skew_reverse_kl(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary, *, alpha: float
) -> tuple[Tensor, Slope]:
    """KL(q || m), m = (1 - alpha) p + alpha q."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    difference = log_q - _log_mixture(log_q, log_p, alpha)
    q = log_q.exp_()
    value = vocabulary.sum(q * difference)
    return value, lambda: _through_softmax(difference - difference.exp().mul_(alpha), q, vocabulary)


def adaptive_kl(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary, *, mu: float
) -> tuple[Tensor, Slope]:
    """Share KL(p || q) + (1 - share) KL(q || p), with the constant share of p's head in |p - q|."""
    allowed = logits.masked_fill(target == -math.inf, -math.inf)
    log_q, log_r, log_p = vocabulary.log_softmax(logits, allowed, target)
    p, q, r = log_p.exp(), log_q.exp(), log_r.exp()
    gaps = (p - q).abs_()
    in_head = vocabulary.sum(gaps * _likeliest(log_p, mu, vocabulary))
    share = in_head / vocabulary.sum(gaps).clamp_(min=torch.finfo(gaps.dtype).tiny)
    forward = vocabulary.sum((log_p - log_q).mul_(p))
    difference = log_r.sub_(log_p)
    reverse = vocabulary.sum(r * difference)

    def slope() -> Tensor:
        backward = difference.sub_(reverse.unsqueeze(-1)).mul_(r)
        return q.sub_(p).mul_(share.unsqueeze(-1)).add_(backward.mul_((1 - share).unsqueeze(-1)))

    return share * forward + (1 - share) * reverse, slope


def cross_entropy(logits: Tensor, labels: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Slope]:
    """Minus log q of the label."""
    (log_q,) = vocabulary.log_softmax(logits)
    column, here = (x.unsqueeze(-1) for x in vocabulary.locate(labels, logits.shape[-1]))
    value = -vocabulary.sum(log_q.gather(-1, column) * here)
    return value, lambda: log_q.exp_().scatter_add_(-1, column, -here.to(log_q.dtype))


def mse(
    logits: Tensor, target: Tensor, vocabulary: Vocabulary, *, factor: float
) -> tuple[Tensor, Slope]:
    """Mean of (logits - factor target)^2 over the columns with a target."""
    absent = target == -math.inf
    difference = torch.where(absent, 0.0, logits - factor * target)
    columns = vocabulary.sum((~absent).to(logits.dtype)).clamp_(min=1)
    value = vocabulary.sum(difference.square()) / columns
    return value, lambda: difference.mul_(2 / columns.unsqueeze(-1))


def visible_mse(scores: Tensor, target: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Slope]:
    """Mean squared error over the columns that neither side masks."""
    visible = torch.minimum(scores, target) > MASKED
    difference = torch.where(visible, scores - target, 0.0)
    count = vocabulary.sum(visible.to(scores.dtype)).clamp_(min=1)
    value = vocabulary.sum(difference.square()) / count
    return value, lambda: difference.mul_(2 / count.unsqueeze(-1))


def _likeliest(log_p: Tensor, share: float, vocabulary: Vocabulary) -> Tensor:
    """Return the likeliest columns that have at most a share of p together, or else the first.

    The lowest of their log-probabilities is found by bisection, which needs sums only, wherever the
    columns are.
    """
    p = log_p.exp()
    low = torch.full_like(log_p[..., 0], LEAST)
    high = torch.full_like(low, 1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        exceeds = vocabulary.sum(p * (log_p >= middle.unsqueeze(-1))) > share
        low, high = middle.where(exceeds, low), high.where(exceeds, middle)
    empty = vocabulary.sum(p * (log_p >= high.unsqueeze(-1))) == 0
    return log_p >= low.where(empty, high).unsqueeze(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Log of share p + (1 - share) q."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _through_softmax(slope: Tensor, q: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Convert the derivative with respect to q into that with respect to the logits."""
    return slope.sub_(vocabulary.sum(slope * q).unsqueeze(-1)).mul_(q)
