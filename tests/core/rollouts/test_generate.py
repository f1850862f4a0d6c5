"""The built-in engine, which writes with Hugging Face's `generate`."""

from __future__ import annotations

import pytest
import torch

from gkd_core.rollouts.engines.generate import Generate, GumbelNoise
from gkd_core.testing import check_rollouts


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"temperature": 0}, marks=pytest.mark.exhaustive),
        pytest.param({}, marks=pytest.mark.exhaustive),
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9},
    ],
    ids=["greedy", "defaults", "all-options"],
)
def test_it_keeps_the_contract_of_engines(options):
    check_rollouts(Generate, options)


def test_noise_draws_from_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).double()
    noise = GumbelNoise([7])
    drawn = torch.cat([noise(torch.tensor([[0]]), scores).argmax(-1) for _ in range(20_000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = scores[0].softmax(-1)
    deviation = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((shares - expected).abs() <= 4 * deviation).all()


def test_a_row_has_its_own_noise():
    scores = torch.zeros(2, 5)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    first, second = GumbelNoise([1, 2])(ids, scores)
    assert not torch.equal(first, second)
    assert torch.equal(GumbelNoise([2])(ids[:1], scores[:1])[0], second)
