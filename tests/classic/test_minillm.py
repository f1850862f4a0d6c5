"""Rewards and returns worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gkd_core.api import Batch
from gkd_methods_classic.minillm import MiniLLM, mean_of_later

LABELS = torch.tensor([[0, 1, 0], [1, 1, 0]])
SOURCES = torch.tensor([1, 0])
EVEN = torch.zeros(2, 3, 2, dtype=torch.float64)


def _batch(log_drawn=None):
    mask = torch.ones_like(LABELS)
    inputs = {"input_ids": mask, "attention_mask": mask}
    return Batch(inputs, LABELS, torch.arange(2), sources=SOURCES, log_drawn=log_drawn)


def test_returns_are_means_of_later_rewards():
    rewards = torch.tensor([[0.0, 2.0, -4.0, 6.0, 0.0]])
    mask = torch.tensor([[False, True, True, True, False]])
    assert mean_of_later(rewards, mask).tolist() == [[0, 1, 6, 0, 0]]


@pytest.fixture
def minillm(term_of):
    def _minillm(student, teacher, log_drawn=None, **options):
        return term_of(MiniLLM(MiniLLM.Config(**options)), _batch(log_drawn), student, teacher)

    return _minillm


def test_terms_by_hand(minillm):
    # The teacher gives token 0 the probability 3/4 everywhere, the student 1/2.
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(2, 3, 2)
    terms = minillm(EVEN, teacher)
    up, down = math.log(1.5), math.log(0.5)  # rewards of tokens 0 and 1
    assert terms["single"].over.count == terms["long"].over.count == terms["lm"].over.count == 3
    assert terms["single"].mean().item() == pytest.approx(-(up + down) / 2)
    returns = [(down + up) / 2, up, 0]
    assert terms["long"].mean().item() == pytest.approx(math.log(2) * sum(returns) / 3)
    assert terms["lm"].mean().item() == pytest.approx(math.log(2))


def test_the_policy_gradient_raises_what_leads_to_rewards(minillm):
    student = EVEN.clone().requires_grad_()
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(2, 3, 2)
    (slope,) = torch.autograd.grad(minillm(student, teacher)["long"].mean(), student)
    # d(-log q(y)) = q - onehot(y), times the return, over three tokens
    returns = torch.tensor([(math.log(0.5) + math.log(1.5)) / 2, math.log(1.5), 0.0])
    signs = torch.tensor([[-0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]])
    torch.testing.assert_close(slope[0], (signs * returns.unsqueeze(1) / 3).double())
    assert not slope[1].any()


def test_text_that_the_teacher_helped_to_write_is_weighed_by_importance(minillm):
    # Of token 0 the mixture has 0.2 * 3/4 + 0.8 * 1/2 = 0.55, of token 1 0.2 * 1/4 + 0.4 = 0.45.
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(2, 3, 2)
    drawn = torch.tensor([[0.55, 0.45, 0.55], [1, 1, 1]], dtype=torch.float64).log()
    terms = minillm(EVEN, teacher, drawn)
    weights = [0.5 / 0.55, 0.5 / 0.45, 0.5 / 0.55]
    up, down = math.log(1.5), math.log(0.5)
    assert terms["single"].mean().item() == pytest.approx(-(up + down) / 2 * sum(weights) / 3)
    returns = [(down + up) / 2, up, 0]
    long = sum(weight * later for weight, later in zip(weights, returns, strict=True)) / 3
    assert terms["long"].mean().item() == pytest.approx(math.log(2) * long)
    assert terms["lm"].mean().item() == pytest.approx(math.log(2)), "rows of the data have none"


def test_the_weights_are_constants(minillm):
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(2, 3, 2)
    drawn = torch.tensor([[0.55, 0.45, 0.55], [1, 1, 1]], dtype=torch.float64).log()
    student = EVEN.clone().requires_grad_()
    (slope,) = torch.autograd.grad(minillm(student, teacher, drawn)["long"].mean(), student)
    (plain,) = torch.autograd.grad(minillm(student, teacher)["long"].mean(), student)
    weights = torch.tensor([0.5 / 0.55, 0.5 / 0.45, 0.5 / 0.55], dtype=torch.float64)
    torch.testing.assert_close(slope[0], plain[0] * weights.unsqueeze(1))


def test_weights_and_clip(minillm):
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(2, 3, 2)
    plain = minillm(EVEN, teacher)
    halved = minillm(EVEN, teacher, long_weight=0.5, lm_weight=0)
    assert halved["long"].mean().item() == pytest.approx(plain["long"].mean().item() / 2)
    assert halved["lm"].mean().item() == 0
    clipped = minillm(EVEN, teacher, clip=0.1)["long"].mean().item()
    assert clipped == pytest.approx(math.log(2) * (0 + 0.1) / 3)


def test_equal_models_keep_only_the_language_model(minillm):
    terms = minillm(EVEN, EVEN)
    assert terms["single"].mean().item() == terms["long"].mean().item() == 0
