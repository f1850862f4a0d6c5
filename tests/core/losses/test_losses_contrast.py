"""InfoNCE with the items of the batch as negatives."""

import math

import pytest
import torch
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses import contrast

MASK = torch.tensor([True, False, True, True])
OVER = Items.where("sample", MASK)


def vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_value_is_the_cross_entropy_of_finding_the_own_vector():
    student, teacher = vectors(4, 5), vectors(4, 5, seed=1)
    s, t = (functional.normalize(x[MASK], dim=-1) for x in (student, teacher))
    expected = functional.cross_entropy(s @ t.T / 0.2, torch.arange(3))
    torch.testing.assert_close(contrast(student, teacher, OVER, 0.2).mean(), expected)


def test_two_opposite_samples_have_the_value_computed_by_hand():
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    over = Items.where("sample", torch.tensor([True, True]))
    found, swapped = (contrast(student, t, over, 1.0).mean() for t in (student, student.flip(0)))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    assert swapped.item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_vectors_that_are_alike_tell_nothing_apart():
    alike = torch.ones(4, 5)
    assert contrast(alike, alike, OVER).mean().item() == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.parametrize("weights", [vectors(2, 3).abs(), None], ids=["weighted", "mean"])
def test_gradients_are_exact(weights):
    over = Items.where("token", torch.tensor([[True, True, False], [True, False, True]]))
    teacher = vectors(2, 3, 5, seed=1)

    def loss(student):
        term = contrast(student, teacher, over, 0.5)
        return term.mean() if weights is None else (term.values * weights).sum()

    assert torch.autograd.gradcheck(loss, vectors(2, 3, 5).requires_grad_())


def test_padding_is_nobodys_negative():
    teacher = vectors(4, 5, seed=1)
    expected = contrast(vectors(4, 5), teacher, OVER).values
    student = vectors(4, 5).masked_fill(~MASK[:, None], 3.0)
    teacher = teacher.masked_fill(~MASK[:, None], math.nan)
    torch.testing.assert_close(contrast(student, teacher, OVER).values, expected)


def test_scale_does_not_matter_and_the_order_of_samples_neither():
    student, teacher = vectors(3, 5), vectors(3, 5, seed=1)
    over = Items.where("sample", torch.ones(3, dtype=torch.bool))
    expected = contrast(student, teacher, over).values
    torch.testing.assert_close(contrast(2 * student, 7 * teacher, over).values, expected)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        contrast(student[order], teacher[order], over).values, expected[order]
    )


@pytest.mark.parametrize("mask", [[False, False], [True, False]])
def test_nobody_to_compare_with_gives_zero(mask):
    student = torch.randn(2, 5, requires_grad=True)
    loss = contrast(student, torch.randn(2, 5), Items.where("sample", torch.tensor(mask))).mean()
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-6


def test_half_precision_and_autocast_are_computed_in_fp32():
    student, teacher = vectors(4, 5).bfloat16(), vectors(4, 5, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = contrast(student, teacher, OVER).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values, contrast(student.double(), teacher.double(), OVER).values.float()
    )


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="projection"):
        contrast(vectors(4, 5), vectors(4, 6), OVER)
