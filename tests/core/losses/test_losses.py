"""Golden numbers are computed by hand or with plain formulae in fp64."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from gkd_core import losses
from gkd_core.contract.batch import Batch, Items
from gkd_core.losses import (
    Term,
    chunked,
    cosine,
    cross_entropy,
    hard_labels,
    huber,
    kl,
    mse,
    normalized_mse,
    soft_cross_entropy,
    soft_labels,
)


def items(*mask, kind="sample"):
    return Items.where(kind, torch.tensor(mask))


ONE = items(True)
TEACHER = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        (2.0, 0.145363),
        (1e4, 0.150869),  # sum of squared centered differences / (2 C)
    ],
)
def test_kl_has_the_golden_value(temperature, expected):
    value = kl(STUDENT, TEACHER, ONE, temperature).mean()
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_kl_without_t2_is_smaller_by_t2():
    scaled = kl(STUDENT, TEACHER, ONE, 10.0)
    plain = kl(STUDENT, TEACHER, ONE, 10.0, scale=False)
    assert scaled.mean().item() == pytest.approx(100 * plain.mean().item())


def test_kl_of_equal_logits_is_zero_with_zero_gradient():
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    term = kl(logits, logits.detach(), items(*[True] * 5), 3.0)
    term.mean().backward()
    assert term.values.abs().max().item() < 1e-12
    assert logits.grad.abs().max().item() < 1e-12


def test_kl_ignores_a_constant_added_to_the_logits():
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64)
    over = items(*[True] * 4)
    shifted = kl(student + 5, teacher - 3, over, 2.0)
    torch.testing.assert_close(shifted.values, kl(student, teacher, over, 2.0).values)


def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy():
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64)
    over = items(*[True] * 4)
    p = teacher.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    difference = (
        soft_cross_entropy(student, teacher, over).values - kl(student, teacher, over).values
    )
    torch.testing.assert_close(difference, entropy)


def test_pd_golden_value_is_the_teachers_entropy():
    value = soft_cross_entropy(TEACHER, TEACHER, ONE).mean()
    assert value.item() == pytest.approx(0.562335, abs=1e-6)


@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_gradients_are_exact(loss):
    student = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 6, dtype=torch.float64)
    over = Items.where("token", torch.tensor([[True, True, False], [True, False, True]]))
    weights = torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: (loss(s, teacher, over, 2.5).values * weights).sum(), student
    )


def test_gradients_of_cross_entropy_are_exact():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 4, 0])
    over = items(True, False, True)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, over).values.sum(), logits)


def test_cross_entropy_equals_pytorch_on_the_rows_that_count():
    logits, labels = torch.randn(6, 11), torch.tensor([3, -100, 0, 10, -100, 7])
    over = Items.where("target", labels != -100)
    expected = functional.cross_entropy(logits, labels, ignore_index=-100)
    torch.testing.assert_close(cross_entropy(logits, labels, over).mean(), expected)


def test_chunking_changes_nothing(monkeypatch):
    student = torch.randn(40, 50, requires_grad=True)
    teacher, over = torch.randn(40, 50), Items.where("token", torch.rand(40) > 0.3)
    whole = kl(student, teacher, over, 2.0)
    (gradient,) = torch.autograd.grad(whole.mean(), student)
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 150)
    parts = kl(student, teacher, over, 2.0)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(torch.autograd.grad(parts.mean(), student)[0], gradient)


def test_rows_that_do_not_count_may_hold_anything():
    student = torch.randn(2, 4).index_fill_(0, torch.tensor([1]), math.nan).requires_grad_()
    term = kl(student, torch.randn(2, 4), items(True, False))
    term.mean().backward()
    assert term.mean().isfinite()
    assert torch.equal(student.grad[1], torch.zeros(4))


def test_nothing_that_counts_gives_zero_not_nan():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = kl(logits, torch.randn(2, 4), items(False, False)).mean()
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum().item() == 0


def test_columns_the_teacher_excludes_are_safe():
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    student = torch.zeros(1, 3, requires_grad=True)
    loss = kl(student, teacher, ONE).mean()
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_losses_of_bf16_are_computed_in_fp32():
    student, teacher = torch.randn(2, 8, 100).bfloat16()
    over = items(*[True] * 8)
    value = kl(student, teacher, over).values
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, kl(student.float(), teacher.float(), over).values)


def test_soft_labels_of_a_wider_teacher_vocabulary_ignore_its_padding():
    student, teacher = torch.randn(1, 2, 5), torch.randn(1, 2, 8)
    over = Items.where("token", torch.ones(1, 2, dtype=torch.bool))
    wide = soft_labels(student, teacher, over, 1.0)
    torch.testing.assert_close(wide.values, kl(student, teacher[..., :5], over).values)


def test_soft_labels_of_a_narrower_teacher_vocabulary_give_the_rest_no_mass():
    student = torch.randn(1, 2, 8, requires_grad=True)
    over = Items.where("token", torch.ones(1, 2, dtype=torch.bool))
    loss = soft_labels(student, torch.randn(1, 2, 5), over, 1.0).mean()
    loss.backward()
    assert loss.isfinite()
    assert (student.grad[..., 5:] > 0).all()


def test_classes_are_never_cut():
    with pytest.raises(ValueError, match="differ in shape"):
        soft_labels(torch.randn(2, 3), torch.randn(2, 4), items(True, True), 1.0)


def test_regression_compares_values():
    over = items(True, True)
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert hard_labels(logits, labels, over).mean().item() == pytest.approx((1 + 4) / 2)
    assert soft_labels(logits, logits + 3, over, 4.0).mean().item() == pytest.approx(9)


def test_mse_is_the_mean_over_units_and_items():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    assert mse(student, teacher, ONE).mean().item() == pytest.approx(2.0)


def test_huber_is_half_the_square_up_to_delta_and_a_line_beyond():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 3.0]])
    expected = (0.5**2 / 2 + 2 * (3 - 2 / 2)) / 2
    assert huber(student, teacher, ONE, delta=2.0).mean().item() == pytest.approx(expected)
    half = mse(student, teacher, ONE).mean().item() / 2
    assert huber(student, teacher, ONE, delta=10.0).mean().item() == pytest.approx(half)


@pytest.mark.parametrize("loss", [mse, huber, normalized_mse, cosine])
def test_gradients_of_distances_are_exact(loss):
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    over = Items.where("token", torch.tensor([[True, True, False], [True, False, True]]))
    weights = torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: (loss(s, teacher, over).values * weights).sum(), student
    )


@pytest.mark.parametrize("loss", [mse, huber, normalized_mse, cosine])
def test_distance_to_itself_is_zero_and_padding_contributes_nothing(loss):
    student = torch.randn(1, 3, 4, dtype=torch.float64)
    over = Items.where("token", torch.tensor([[True, True, False]]))
    assert loss(student, student, over).mean().item() == pytest.approx(0, abs=1e-12)
    teacher = torch.randn(1, 3, 4, dtype=torch.float64)
    changed = student.masked_fill(~over.mask[..., None], 7.0).requires_grad_()
    term = loss(changed, teacher, over)
    torch.testing.assert_close(term.values, loss(student, teacher, over).values)
    term.mean().backward()
    assert (changed.grad[0, 2] == 0).all()


def test_normalized_mse_has_the_golden_value_of_pkd():
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    value = normalized_mse(student, teacher, ONE).mean().item()
    assert 2 * value == pytest.approx(0.8)
    assert normalized_mse(7 * student, teacher, ONE).mean().item() == pytest.approx(value)


def test_cosine_ignores_padding_and_positive_scale():
    student = torch.randn(1, 10, 4)
    over = Items.where("token", torch.tensor([[True] * 8 + [False] * 2]))
    assert cosine(3 * student, student, over).mean().item() == pytest.approx(0, abs=1e-6)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="projection"):
        mse(torch.randn(1, 4), torch.randn(1, 6), ONE)


def test_teacher_features_get_no_gradient():
    teacher = torch.randn(1, 4, requires_grad=True)
    mse(torch.randn(1, 4, requires_grad=True), teacher, ONE).mean().backward()
    assert teacher.grad is None


def test_terms_add_and_scale():
    term = Term(torch.tensor([1.0, 3.0]), items(True, True))
    total = sum([term, 2 * term])
    assert total.mean().item() == pytest.approx(6)
    with pytest.raises(ValueError, match="cannot add"):
        _ = term + Term(torch.zeros(2), items(True, True, kind="token"))


def test_several_terms_add_from_left_to_right():
    term = Term(torch.tensor([1.0, 3.0]), items(True, True))
    assert Term.sum(n * term for n in range(4)).values.tolist() == [6, 18]
    assert Term.sum([term]) is term
    with pytest.raises(ValueError, match="no term to sum"):
        Term.sum([])


def test_a_factor_may_be_learned_or_differ_by_item():
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    factor = torch.tensor(2.0, requires_grad=True)
    (Term(values, items(True, True)) * factor).mean().backward()
    assert factor.grad.item() == pytest.approx(2)
    assert values.grad.tolist() == pytest.approx([1, 1])
    each = torch.tensor([5.0, 7.0]) * Term(values, items(True, True))
    assert torch.autograd.grad(each.mean(), values)[0].tolist() == pytest.approx([2.5, 3.5])


def test_scaled_terms_can_be_differentiated_twice():
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = (3 * Term(x.square(), items(True, True))).mean()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert curve.tolist() == pytest.approx([3, 3])


def test_term_is_divided_by_the_items_of_the_whole_step():
    term = Term(torch.tensor([1.0, 3.0]), items(True, True))
    assert term.mean({"sample": 8}).item() == pytest.approx(0.5)


def test_batch_counts_its_items():
    batch = Batch(
        {"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
        torch.tensor([[5, -100, 7], [-100, 2, -100]]),
        torch.tensor([0, 1]),
    )
    assert batch.counts() == {"sample": 2, "token": 5, "target": 3}
    assert batch.to(torch.device("cpu")).counts() == batch.counts()


@pytest.mark.parametrize("name", losses.__all__)
def test_every_public_name_is_in_the_reference(name):
    page = Path(__file__).parents[3] / "docs" / "reference" / "losses.md"
    assert re.search(rf"auto\w+:: gkd_core\.api\.{name}$", page.read_text(), re.MULTILINE)
