"""Divergences of plugins, written as functions of log-probabilities."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.api import Items, LinearLogits, divergence, kl, skew_kl, soft_labels
from gkd_core.losses import chunked
from gkd_core.planning.memory_tracker import MemoryTracker

MASK = torch.tensor([[True, True, False], [True, False, True]])
OVER = Items.where("token", MASK)
WEIGHTS = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 0.1]], dtype=torch.float64)


@divergence
def own_kl(log_student, log_teacher, sum):
    """KL(p || q)."""
    return sum(log_teacher.exp() * (log_teacher - log_student))


@divergence
def own_skew_kl(log_student, log_teacher, sum):
    mixture = torch.logaddexp(log_teacher + math.log(0.2), log_student + math.log(0.8))
    return sum(log_teacher.exp() * (log_teacher - mixture))


@divergence
def sharpened(log_student, log_teacher, sum):
    """Compares q^2 / sum(q^2) with p: one sum inside of another."""
    squares = (2 * log_student).exp()
    q = squares / sum(squares).unsqueeze(-1)
    return sum((q - log_teacher.exp()).square())


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def heads(words=50, dim=4):
    return (random(2, 3, dim), random(words, dim, seed=1), random(words, seed=2))


def solve(loss, make, weights=None):
    """Values, and the gradients of the tensors that the student is made of."""
    tensors = [tensor.clone().requires_grad_() for tensor in heads()]
    teacher = random(2, 3, 50, seed=3)
    teacher[..., 7] = -math.inf
    values = loss(make(*tensors), teacher, OVER, 2.0).values
    total = values.sum() / 7 if weights is None else (values * weights).sum()
    return [values, *torch.autograd.grad(total, tensors)]


PAIRS = {"kl": (own_kl, kl), "skew": (own_skew_kl, partial(skew_kl, alpha=0.2))}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["mean", "weighted"])
@pytest.mark.parametrize("chunk", [8, 2**21])
@pytest.mark.parametrize("fused", [True, False])
def test_a_rule_equals_the_closed_form(monkeypatch, name, weights, chunk, fused):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(chunked, "FUSED_ROWS", 1)

    def make(*tensors):
        return LinearLogits(*tensors) if fused else LinearLogits(*tensors).dense()

    found, expected = (solve(loss, make, weights) for loss in PAIRS[name])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_sum_inside_of_a_sum_is_differentiated():
    teacher = random(2, 3, 50, seed=3)
    logits = random(2, 3, 50).requires_grad_()
    q = logits.softmax(-1).square()
    expected = (q / q.sum(-1, keepdim=True) - teacher.softmax(-1)).square().sum(-1)
    found = sharpened(logits, teacher, OVER).values
    torch.testing.assert_close(found, torch.where(MASK, expected, 0.0), rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad(found.sum(), logits)
    (theirs,) = torch.autograd.grad(expected[MASK].sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_it_is_a_divergence_of_soft_labels():
    logits, teacher = random(2, 3, 50), random(2, 3, 60, seed=1)
    found = soft_labels(logits, teacher, OVER, 2.0, divergence=own_kl)
    torch.testing.assert_close(found.values, soft_labels(logits, teacher, OVER, 2.0).values)
    assert (own_kl.__name__, own_kl.__doc__) == ("own_kl", "KL(p || q).")


def test_nothing_is_computed_for_a_gradient_that_nobody_wants():
    with torch.no_grad():
        term = own_kl(random(2, 3, 5), random(2, 3, 5, seed=1), OVER)
    assert not term.values.requires_grad


def test_hooks_on_saved_tensors_do_not_see_the_chunks():
    logits, teacher = random(2, 3, 50).requires_grad_(), random(2, 3, 50, seed=1)
    seen = []
    with saved_tensors_hooks(lambda x: seen.append(x.shape) or x, lambda x: x):
        own_kl(logits, teacher, OVER)
    assert seen == [(2, 3, 50)]  # the gradient


TOKENS, WORDS, WIDTH = 1024, 8192, 32


def peak(loss):
    """Bytes in use at most, forward and backward."""
    over = Items.where("token", torch.ones(TOKENS, dtype=torch.bool))
    float32 = {"dtype": torch.float32}
    hidden, weight = random(TOKENS, WIDTH, **float32), random(WORDS, WIDTH, **float32)
    student = LinearLogits(hidden.requires_grad_(), weight.requires_grad_(), None)
    teacher = LinearLogits(random(TOKENS, WIDTH, **float32), random(WORDS, WIDTH, **float32), None)
    with MemoryTracker() as tracker:
        loss(student, teacher, over).mean().backward()
    return sum(tracker.peak.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PAIRS)
def test_it_takes_the_memory_of_the_closed_form(monkeypatch, name):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 2**17)
    monkeypatch.setattr(chunked, "FUSED_ROWS", 16)
    ours, theirs = map(peak, PAIRS[name])
    assert ours < 1.2 * theirs
    assert ours < 0.3 * 4 * TOKENS * WORDS  # the logits


def unreduced(log_student, log_teacher, sum):
    return log_student - log_teacher


def constant(log_student, log_teacher, sum):
    return sum(log_teacher)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (unreduced, r"unreduced returned \(4, 5\) for 4 rows; return one loss per row, reduced"),
        (constant, "constant does not depend on the student's log-probabilities"),
    ],
)
def test_a_rule_that_cannot_be_right_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        divergence(rule)(random(2, 3, 5), random(2, 3, 5, seed=1), OVER)
