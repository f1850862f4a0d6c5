"""Losses of predictions that are no distribution: independent classes and vectors."""

from __future__ import annotations

import math

import pytest
import torch

from gkd_core.contract.batch import Items
from gkd_core.losses.divergences import js, kl
from gkd_core.losses.soft_labels import hard_labels, soft_labels

BOTH = Items.where("target", torch.ones(2, dtype=torch.bool), "binary")


def _kl(p, q):
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)))


def _sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_soft_labels_of_independent_classes_by_hand():
    student = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, 1.0], [0.5, -3.0]], dtype=torch.float64)
    found = soft_labels(student, teacher, BOTH, temperature=2.0)
    for row in range(2):
        wanted = [
            4 * _kl(_sigmoid(float(t) / 2), _sigmoid(float(s) / 2))
            for s, t in zip(student[row], teacher[row], strict=True)
        ]
        assert float(found.values[row]) == pytest.approx(sum(wanted) / 2, rel=1e-12)


@pytest.mark.parametrize("divergence", [kl, js])
def test_gradients_of_independent_classes(divergence):
    student = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: soft_labels(z, teacher, BOTH, 1.5, divergence=divergence).values, student
    )


def test_hard_labels_of_independent_classes_by_hand():
    logits = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = hard_labels(logits, labels, BOTH)
    first = -(math.log(_sigmoid(1)) + math.log(_sigmoid(-2))) / 2
    second = -(math.log(1 - _sigmoid(0.5)) + math.log(0.5)) / 2
    assert found.values.tolist() == pytest.approx([first, second], rel=1e-12)


def test_vectors_are_compared_by_their_squared_distance():
    over = Items.where("target", torch.ones(1, dtype=torch.bool), "vector")
    found = soft_labels(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]), over, 4.0)
    assert found.values.tolist() == [2.5]
