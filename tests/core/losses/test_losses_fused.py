"""Losses of logits that are computed from hidden states a few rows at a time."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses import (
    LinearLogits,
    cross_entropy,
    hard_labels,
    kl,
    logits_mse,
    rules,
    soft_labels,
)
from gkd_core.losses.chunked import rowwise

OVER = Items.where("token", torch.tensor([[True, True, False], [True, False, True]]))
WORDS = 50


def linear(width, bias=True, words=WORDS, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, width), (words, width), (words,)]
    parts = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    return LinearLogits(*parts[:2], parts[2] if bias else None)


def parts(logits):
    return [part for part in (logits.hidden, logits.weight, logits.bias) if part is not None]


def test_shape_is_that_of_the_logits():
    student = linear(4)
    assert student.shape == student.dense().shape == (2, 3, WORDS)
    assert student.dim() == student.dense().dim() == 3


@pytest.mark.parametrize("fused_teacher", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_computed_logits_equal_given_ones(fused_teacher, bias):
    student, teacher = linear(4, bias), linear(6, bias, seed=1)
    given = teacher if fused_teacher else teacher.dense()
    fused = kl(student, given, OVER, 2.0).mean()
    dense = kl(student.dense(), teacher.dense(), OVER, 2.0).mean()
    torch.testing.assert_close(fused, dense)
    torch.testing.assert_close(
        torch.autograd.grad(fused, parts(student)), torch.autograd.grad(dense, parts(student))
    )


def test_a_given_student_may_have_a_computed_teacher():
    student, teacher = torch.randn(2, 3, WORDS, requires_grad=True), linear(6)
    term = kl(student, teacher, OVER)
    torch.testing.assert_close(term.values, kl(student, teacher.dense(), OVER).values)
    term.mean().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.weight.grad is None


@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_nothing_of_the_size_of_the_logits_is_kept(loss):
    student, teacher = linear(2), linear(2, seed=1)
    sizes = []
    with saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        if loss == "kl":
            kl(student, teacher, OVER)
        else:
            cross_entropy(student, torch.zeros(2, 3, dtype=torch.int64), OVER)
    assert sizes
    assert max(sizes) < OVER.count * WORDS


def test_given_logits_of_the_teacher_are_let_go():
    student, teacher = torch.randn(2, 3, WORDS, requires_grad=True), torch.randn(2, 3, WORDS)
    watched = weakref.ref(teacher)
    term = kl(student, teacher, OVER)
    del teacher
    gc.collect()
    assert watched() is None
    term.mean().backward()


def counting_kl():
    """Return a rule that counts, and its count."""
    counts = {"values": 0, "slopes": 0}

    def rule(logits, target, vocabulary):
        counts["values"] += 1
        value, slope = rules.kl(logits, target, vocabulary)

        def counted():
            counts["slopes"] += 1
            return slope()

        return value, counted

    return rule, counts


@pytest.mark.parametrize(
    "reduce",
    [
        lambda term: term.mean(),
        lambda term: 2 * term.mean({"token": 100}),
        lambda term: (0.5 * term).mean(),
        lambda term: (torch.tensor(0.5) * (term * 0.1)).mean(),
    ],
)
def test_backward_of_a_mean_computes_no_logits(reduce):
    rule, counts = counting_kl()
    student, teacher = linear(4), linear(4, seed=1)
    fused = reduce(rowwise(rule, student, teacher, OVER))
    dense = reduce(kl(student.dense(), teacher.dense(), OVER))
    torch.testing.assert_close(
        torch.autograd.grad(fused, parts(student)), torch.autograd.grad(dense, parts(student))
    )
    assert counts == {"values": 1, "slopes": 1}


def test_backward_of_a_sum_of_terms_computes_no_logits():
    rule, counts = counting_kl()
    student, teacher = linear(4), linear(4, seed=1)
    terms = [rowwise(rule, student, teacher, OVER) for _ in range(2)]
    (0.5 * sum(weight * term for weight, term in zip((2, 3), terms, strict=True))).mean().backward()
    assert counts == {"values": 2, "slopes": 2}


def test_weighted_losses_compute_the_logits_again():
    rule, counts = counting_kl()
    term = rowwise(rule, linear(4), linear(4, seed=1), OVER)
    (term * torch.rand(2, 3)).mean().backward()
    assert counts == {"values": 2, "slopes": 2}


def test_a_number_and_weights_both_reach_the_gradient():
    student, teacher, weights = linear(4), linear(4, seed=1), torch.rand(2, 3)
    fused = ((0.5 * kl(student, teacher, OVER)).values * weights).sum()
    dense = (0.5 * kl(student.dense(), teacher.dense(), OVER).values * weights).sum()
    torch.testing.assert_close(
        torch.autograd.grad(fused, parts(student)), torch.autograd.grad(dense, parts(student))
    )


def test_given_logits_are_never_visited_again():
    rule, counts = counting_kl()
    student = torch.randn(2, 3, WORDS, requires_grad=True)
    term = rowwise(rule, student, torch.randn(2, 3, WORDS), OVER)
    (term * torch.rand(2, 3)).mean().backward()
    assert counts == {"values": 1, "slopes": 1}


def test_no_gradient_is_computed_where_none_is_wanted():
    rule, counts = counting_kl()
    student, teacher = linear(4), linear(4, seed=1)
    with torch.no_grad():
        rowwise(rule, student, teacher, OVER)
    frozen = LinearLogits(*(part.detach() for part in parts(student)))
    assert not rowwise(rule, frozen, teacher, OVER).values.requires_grad
    assert counts["slopes"] == 0


def test_a_frozen_head_passes_the_gradient_on():
    student, teacher = linear(4), linear(4, seed=1)
    student.weight.requires_grad_(False)
    kl(student, teacher, OVER).mean().backward()
    assert student.weight.grad is None
    assert student.hidden.grad.abs().sum() > 0


def test_a_tied_weight_gets_both_gradients():
    weight = torch.randn(WORDS, 4, requires_grad=True)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    teacher, gradients = torch.randn(2, 3, WORDS), []
    for fused in (True, False):
        student = LinearLogits(functional.embedding(tokens, weight), weight, None)
        loss = kl(student if fused else student.dense(), teacher, OVER).mean()
        gradients += torch.autograd.grad(loss, weight)
    torch.testing.assert_close(*gradients)


def test_half_precision_sums_the_gradient_of_the_weight_in_fp32():
    student, teacher = linear(4, dtype=torch.bfloat16), linear(6, seed=1, dtype=torch.bfloat16)
    exact = LinearLogits(*(part.detach().float().requires_grad_() for part in parts(student)))
    term = kl(student, teacher, OVER)
    term.mean().backward()
    kl(exact, LinearLogits(*(p.float() for p in parts(teacher))), OVER).mean().backward()
    assert term.values.dtype == torch.float32
    for rough, smooth in zip(parts(student), parts(exact), strict=True):
        assert rough.grad.dtype == torch.bfloat16
        torch.testing.assert_close(rough.grad.float(), smooth.grad, rtol=0.05, atol=0.005)


def test_autocast_computes_logits_in_half_precision_and_losses_in_fp32():
    student, teacher = linear(4), linear(6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        fused = kl(student, teacher, OVER)
        dense = kl(student.dense(), teacher.dense(), OVER)
    assert fused.values.dtype == torch.float32
    torch.testing.assert_close(fused.values, dense.values)
    gradients = torch.autograd.grad(fused.mean(), parts(student))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(dense.mean(), parts(student)), rtol=0.05, atol=0.005
    )


def test_autocast_leaves_fp64_alone():
    student, teacher = linear(4, dtype=torch.float64), linear(6, seed=1, dtype=torch.float64)
    expected = kl(student, teacher, OVER).values
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kl(student, teacher, OVER).values, expected)


def test_hidden_states_need_not_be_contiguous():
    student = linear(4)
    wide = torch.stack([student.hidden, student.hidden], -1)[..., 0]
    loss = kl(LinearLogits(wide, student.weight, student.bias), linear(4, seed=1), OVER).mean()
    expected = kl(student, linear(4, seed=1), OVER).mean()
    torch.testing.assert_close(
        torch.autograd.grad(loss, student.hidden), torch.autograd.grad(expected, student.hidden)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("words", [WORDS + 3, WORDS - 3])
def test_soft_labels_match_the_teachers_vocabulary(bias, words):
    student, teacher = linear(4), linear(6, bias, words, seed=1)
    fused = soft_labels(student, teacher, OVER, 2.0)
    assert fused.values.isfinite().all()
    torch.testing.assert_close(
        fused.values, soft_labels(student.dense(), teacher.dense(), OVER, 2.0).values
    )


def test_rows_must_be_the_items():
    with pytest.raises(ValueError, match="one row per sample"):
        kl(linear(4), linear(4), Items.where("sample", torch.ones(3, dtype=torch.bool)))


def test_labels_must_be_the_items():
    with pytest.raises(ValueError, match="one row per token"):
        cross_entropy(linear(4), torch.zeros(2, 4, dtype=torch.int64), OVER)


def test_a_regression_takes_the_value():
    over = Items.where("sample", torch.tensor([True, True]))
    hidden, weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    student = LinearLogits(hidden, weight, torch.tensor([2.0]))
    labels = torch.tensor([0.0, 3.0])
    assert hard_labels(student, labels, over).mean().item() == pytest.approx((1 + 4) / 2)
    teacher = student.dense() + 2
    assert soft_labels(student, teacher, over, 4.0).mean().item() == pytest.approx(4)


@pytest.mark.parametrize("fused_student", [True, False])
@pytest.mark.parametrize("words", [WORDS - 4, WORDS, WORDS + 4])
def test_mse_compares_the_logits_that_both_have(fused_student, words):
    student, teacher = linear(4), linear(6, words=words, seed=1)
    both = min(words, WORDS)
    difference = student.dense()[..., :both] - 0.3 * teacher.dense()[..., :both]
    expected = difference.square().mean(-1)[OVER.mask].mean()
    found = logits_mse(student if fused_student else student.dense(), teacher, OVER, 0.3).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, parts(student)), torch.autograd.grad(expected, parts(student))
    )
