"""The sampled divergence is, in expectation over the student's tokens, the reverse divergence."""

from __future__ import annotations

import math

import pytest
import torch

from gkd_core.api import Batch, reverse_kl
from gkd_methods_classic.opd import OPD

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


def _batch(labels, sources, drawn=None):
    mask = torch.ones_like(labels)
    inputs = {"input_ids": mask, "attention_mask": mask}
    rows, sources = torch.arange(len(labels)), torch.tensor(sources)
    return Batch(inputs, labels, rows, sources=sources, log_drawn=drawn)


@pytest.fixture
def opd(term_of):
    """The value and the gradient of the loss where each row is one token that was written."""

    def _opd(labels, sources, logits, known=P, drawn=None):
        batch = _batch(torch.tensor(labels).unsqueeze(1), sources, drawn)
        shape = (len(labels), 1, 3)
        return term_of(OPD(), batch, logits.expand(shape), known.log().expand(shape))["opd"]

    return _opd


def test_a_token_costs_what_the_student_finds_it_likelier_than_the_teacher(opd):
    assert opd([2], [1], Q.log()).mean().item() == pytest.approx(math.log(2))
    assert opd([0], [1], Q.log()).mean().item() == pytest.approx(-math.log(2))
    assert opd([1], [1], Q.log()).mean().item() == 0


def test_only_rows_that_the_student_wrote_count(opd):
    term = opd([2, 2, 1], [0, 1, 2], Q.log())
    assert term.over.count == 1
    assert term.mean().item() == pytest.approx(math.log(2))


OLDER = torch.tensor([0.4, 0.5, 0.1], dtype=torch.float64)
"""What an older student drew tokens from."""


@pytest.mark.parametrize("drawn", [None, Q, 0.2 * P + 0.8 * Q, OLDER])
def test_the_expected_gradient_is_that_of_the_reverse_divergence(opd, drawn):
    """Also where tokens are drawn from a mixture with the teacher, or by an older student."""
    logits, chance = Q.log().requires_grad_(), Q if drawn is None else drawn
    known = None if drawn is None else drawn.log().unsqueeze(1)
    values = opd([0, 1, 2], [1, 1, 1], logits, drawn=known).values.squeeze(1)
    (found,) = torch.autograd.grad((values * chance).sum(), logits, retain_graph=True)
    rows = _batch(torch.tensor([[0]]), [1])
    dense = reverse_kl(logits.view(1, 1, 3), P.log().view(1, 1, 3), rows.targets)
    (expected,) = torch.autograd.grad(dense.mean(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close((values * chance).sum(), dense.mean(), rtol=0, atol=1e-14)


def test_equal_models_learn_nothing(opd):
    logits = P.log().requires_grad_()
    term = opd([0, 1, 2], [1, 1, 1], logits)
    (found,) = torch.autograd.grad(term.mean(), logits)
    assert not found.any()
