"""Golden numbers are computed by hand or with plain formulae in fp64."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses import (
    LinearLogits,
    adaptive_kl,
    chunked,
    cross_entropy,
    js,
    kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)

MASK = torch.tensor([[True, True, False], [True, False, True]])
OVER = Items.where("token", MASK)
ONE = Items.where("sample", torch.tensor([True]))
TEACHER = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)
NEAR_ZERO = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": partial(js, beta=0.3),
    "skew_kl": partial(skew_kl, alpha=0.2),
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.2),
    "adaptive_kl": partial(adaptive_kl, mu=0.6),
    "total_variation": total_variation,
}
DIVERGENCES = NEAR_ZERO | {"soft_cross_entropy": soft_cross_entropy}
SMOOTH = sorted(set(DIVERGENCES) - {"adaptive_kl"})
"""Those whose gradient is all of the derivative: the shares of the adaptive one are constant."""


def plain(name, student, teacher, temperature):
    """Return the divergences of all rows, as one reads them in a book."""
    q, p = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)

    def divergence(a, b):
        return (a * (a / b).log()).sum(-1)

    mixture = 0.3 * p + 0.7 * q
    return {
        "kl": lambda: divergence(p, q),
        "reverse_kl": lambda: divergence(q, p),
        "js": lambda: 0.3 * divergence(p, mixture) + 0.7 * divergence(q, mixture),
        "skew_kl": lambda: divergence(p, 0.2 * p + 0.8 * q),
        "skew_reverse_kl": lambda: divergence(q, 0.8 * p + 0.2 * q),
        "adaptive_kl": lambda: adaptive(p, q, divergence(p, q), divergence(q, p)),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
        "soft_cross_entropy": lambda: -(p * q.log()).sum(-1),
    }[name]()


def adaptive(p, q, forward, reverse):
    """Sum both by the share of the head in the distance, as the published code finds it."""
    ordered, order = p.sort(-1, descending=True)
    gaps = (ordered - q.detach().gather(-1, order)).abs()
    tail = ordered.cumsum(-1) > 0.6
    tail[..., 0] = False
    share = gaps.masked_fill(tail, 0.0).sum(-1) / gaps.sum(-1)
    return share * forward + (1 - share) * reverse


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def head(width, words, seed=0, bias=True):
    """Return hidden states, weight and bias that want a gradient."""
    parts = [logits(2, 3, width, seed=seed), logits(words, width, seed=seed + 1)]
    parts.append(logits(words, seed=seed + 2) if bias else None)
    return [part if part is None else part.requires_grad_() for part in parts]


WEIGHTS = logits(2, 3, seed=9).abs()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [True, False])
def test_value_and_gradient_are_those_of_the_plain_formula(name, scale):
    student, teacher = logits(2, 3, 6).requires_grad_(), logits(2, 3, 6, seed=1)
    term = DIVERGENCES[name](student, teacher, OVER, 2.5, scale)
    factor = 2.5**2 if scale else 1
    expected = torch.where(MASK, factor * plain(name, student, teacher, 2.5), 0.0)
    torch.testing.assert_close(term.values, expected)
    gradients = [
        torch.autograd.grad(x, student)[0] for x in (term.mean(), expected.sum() / OVER.count)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_logits_are_exact(name):
    teacher = logits(2, 3, 5, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: (DIVERGENCES[name](s, teacher, OVER, 2.5).values * WEIGHTS).sum(),
        logits(2, 3, 5).requires_grad_(),
    )


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [WEIGHTS, None], ids=["weighted", "mean"])
def test_gradients_of_hidden_states_weight_and_bias_are_exact(name, bias, weights):
    teacher = LinearLogits(*head(3, 5, seed=10))

    def loss(hidden, weight, *rest):
        student = LinearLogits(hidden, weight, *(rest or (None,)))
        term = DIVERGENCES[name](student, teacher, OVER, 2.5)
        return term.mean() if weights is None else (term.values * weights).sum()

    inputs = [part for part in head(4, 5, bias=bias) if part is not None]
    assert torch.autograd.gradcheck(loss, inputs)
    assert teacher.weight.grad is None


@pytest.mark.parametrize("weights", [WEIGHTS, None], ids=["weighted", "mean"])
def test_gradients_of_fused_cross_entropy_are_exact(weights):
    labels = torch.tensor([[1, 4, -100], [0, -100, 2]])

    def loss(hidden, weight, bias):
        term = cross_entropy(LinearLogits(hidden, weight, bias), labels, OVER)
        return term.mean() if weights is None else (term.values * weights).sum()

    assert torch.autograd.gradcheck(loss, head(4, 5))


@pytest.mark.parametrize("name", NEAR_ZERO)
def test_equal_logits_give_zero_and_no_gradient(name):
    student = logits(2, 3, 7).requires_grad_()
    term = NEAR_ZERO[name](student, student.detach(), OVER, 3.0)
    term.mean().backward()
    assert term.values.abs().max().item() < 1e-12
    assert student.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    student, teacher = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    shifted = DIVERGENCES[name](student + 5, teacher - 3, OVER, 2.0)
    expected = DIVERGENCES[name](student, teacher, OVER, 2.0)
    torch.testing.assert_close(shifted.values, expected.values)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_padding_contributes_nothing_whatever_it_holds(name):
    student = logits(2, 3, 7).masked_fill(~MASK[..., None], math.nan).requires_grad_()
    term = DIVERGENCES[name](student, logits(2, 3, 7, seed=1), OVER, 2.0)
    term.mean().backward()
    assert term.mean().isfinite()
    assert (term.values[~MASK] == 0).all()
    assert (student.grad[~MASK] == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_nothing_that_counts_gives_zero_not_nan(name):
    nothing = Items.where("token", torch.zeros(2, 3, dtype=torch.bool))
    dense, parts = logits(2, 3, 5).requires_grad_(), head(4, 5)
    for student, inputs in ((dense, [dense]), (LinearLogits(*parts), parts)):
        loss = DIVERGENCES[name](student, logits(2, 3, 5, seed=1), nothing).mean()
        gradients = torch.autograd.grad(loss, inputs)
        assert loss.item() == 0
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_micro_batches_add_up_to_the_batch(name):
    student, teacher = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    whole = DIVERGENCES[name](student, teacher, OVER).mean()
    rows = [Items.where("token", MASK[i : i + 1]) for i in range(2)]
    parts = [DIVERGENCES[name](student[[i]], teacher[[i]], rows[i]) for i in range(2)]
    assert sum(part.mean({"token": 4}) for part in parts).item() == pytest.approx(whole.item())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_columns_the_teacher_excludes_are_safe(name):
    teacher = logits(2, 3, 5, seed=1)
    teacher[..., -1] = -math.inf
    student = logits(2, 3, 5).requires_grad_()
    term = DIVERGENCES[name](student, teacher, OVER, 2.0)
    term.mean().backward()
    assert term.values.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_columns_that_both_exclude_are_as_if_they_were_not_there(name):
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    minus = torch.full((2, 3, 2), -math.inf, dtype=torch.float64)
    wide = [torch.cat([x, minus], -1).requires_grad_() for x in (student, teacher)]
    term = DIVERGENCES[name](*wide, OVER, 2.0)
    torch.testing.assert_close(term.values, DIVERGENCES[name](student, teacher, OVER, 2.0).values)
    term.mean().backward()
    assert (wide[0].grad[..., 5:] == 0).all()


def test_reverse_kl_compares_the_columns_that_the_teacher_has():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    expected = reverse_kl(student[..., :3], teacher[..., :3], OVER)
    teacher[..., 3:] = -math.inf
    torch.testing.assert_close(reverse_kl(student, teacher, OVER).values, expected.values)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_chunking_changes_nothing(name, monkeypatch):
    def run():
        parts = head(4, 5)
        term = DIVERGENCES[name](LinearLogits(*parts), LinearLogits(*head(3, 5, seed=5)), OVER, 2.0)
        return [term.values, *torch.autograd.grad(term.mean(), parts)]

    whole = run()
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 10)
    monkeypatch.setattr(chunked, "FUSED_ROWS", 1)
    torch.testing.assert_close(run(), whole)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision_is_computed_in_fp32(name):
    student, teacher = logits(2, 3, 50).bfloat16(), logits(2, 3, 50, seed=1).bfloat16()
    values = DIVERGENCES[name](student, teacher, OVER, 2.0).values
    assert values.dtype == torch.float32
    expected = DIVERGENCES[name](student.double(), teacher.double(), OVER, 2.0).values
    torch.testing.assert_close(values, expected.float())


def test_reverse_kl_has_the_golden_value():
    value = reverse_kl(STUDENT, TEACHER, ONE).mean().item()
    assert value == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_total_variation_has_the_golden_value():
    assert total_variation(STUDENT, TEACHER, ONE).mean().item() == pytest.approx(0.25)


@pytest.mark.parametrize("loss", [kl, reverse_kl])
def test_hot_divergences_are_half_the_mean_square_of_the_centered_difference(loss):
    student, teacher = logits(1, 9), logits(1, 9, seed=1)
    difference = student - teacher
    expected = (difference - difference.mean()).square().sum() / (2 * 9)
    value = loss(student, teacher, ONE, 1e4).mean().item()
    assert value == pytest.approx(expected.item(), rel=1e-3)


def test_gradient_of_kl_is_t_times_the_difference_of_the_distributions():
    student, teacher = logits(1, 5).requires_grad_(), logits(1, 5, seed=1)
    (kl(student, teacher, ONE, 3.0).mean()).backward()
    expected = 3 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_soft_cross_entropy_has_the_gradient_of_kl():
    teacher = logits(2, 3, 5, seed=1)
    gradients = []
    for loss in (kl, soft_cross_entropy):
        student = logits(2, 3, 5).requires_grad_()
        gradients += torch.autograd.grad(loss(student, teacher, OVER, 2.0).mean(), student)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_js_is_at_most_the_entropy_of_its_shares(beta):
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    for size in (1, 10, 1000):
        values = js(size * logits(50, 6), size * logits(50, 6, seed=1), rows(50), beta=beta).values
        assert (values <= entropy + 1e-12).all()
    apart = torch.tensor([[1e4, 0.0]], dtype=torch.float64)
    assert js(apart, apart.flip(-1), ONE, beta=beta).mean().item() == pytest.approx(entropy)


def test_js_with_the_sides_swapped_has_the_other_share():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    torch.testing.assert_close(
        js(student, teacher, OVER, beta=0.2).values, js(teacher, student, OVER, beta=0.8).values
    )


def test_js_divided_by_its_share_tends_to_kl_at_both_ends():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    for beta, limit in ((1e-7, kl), (1 - 1e-7, reverse_kl)):
        value = js(student, teacher, OVER, beta=beta).values / min(beta, 1 - beta)
        torch.testing.assert_close(value, limit(student, teacher, OVER).values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_the_ends_of_js_and_skew_are_refused(share):
    with pytest.raises(ValueError, match="beta must be above 0 and below 1"):
        js(STUDENT, TEACHER, ONE, beta=share)
    with pytest.raises(ValueError, match="alpha must be above 0 and below 1"):
        skew_kl(STUDENT, TEACHER, ONE, alpha=share)
    with pytest.raises(ValueError, match="alpha must be above 0 and below 1"):
        skew_reverse_kl(STUDENT, TEACHER, ONE, alpha=share)
    with pytest.raises(ValueError, match="mu must be above 0 and below 1"):
        adaptive_kl(STUDENT, TEACHER, ONE, mu=share)


def test_skew_kl_is_bounded_even_where_the_student_excludes_columns():
    student, teacher = 1000 * logits(50, 6), 1000 * logits(50, 6, seed=1)
    student[:, 0] = -math.inf
    values = skew_kl(student, teacher, rows(50), alpha=0.2).values
    assert (values <= -math.log(0.2) + 1e-12).all()


def test_skew_kl_tends_to_kl():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    value = skew_kl(student, teacher, OVER, alpha=1e-9).values
    torch.testing.assert_close(value, kl(student, teacher, OVER).values)


def test_skew_reverse_kl_is_bounded_even_where_the_teacher_excludes_columns():
    student, teacher = 1000 * logits(50, 6), 1000 * logits(50, 6, seed=1)
    teacher[:, 0] = -math.inf
    values = skew_reverse_kl(student, teacher, rows(50), alpha=0.2).values
    assert (values <= -math.log(0.2) + 1e-12).all()


def test_skew_reverse_kl_tends_to_reverse_kl():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    value = skew_reverse_kl(student, teacher, OVER, alpha=1e-9).values
    torch.testing.assert_close(value, reverse_kl(student, teacher, OVER).values)


def test_adaptive_kl_is_the_kl_where_only_the_head_differs_and_reverse_where_only_the_tail_does():
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.1]], dtype=torch.float64)
    for q, limit in (([0.3, 0.5, 0.1, 0.1], kl), ([0.5, 0.3, 0.15, 0.05], reverse_kl)):
        student = torch.tensor([q], dtype=torch.float64)
        found, expected = (
            loss(student.log(), teacher.log(), ONE).mean().item()
            for loss in (partial(adaptive_kl, mu=0.8 + 1e-9), limit)
        )
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_head_of_adaptive_kl_has_one_column_at_least():
    """0.9 alone exceeds mu: the head is this column, whose gap is half of the distance."""
    p, q = [0.9, 0.06, 0.04], [0.6, 0.2, 0.2]
    both = [torch.tensor([values], dtype=torch.float64).log() for values in (q, p)]
    mean = (kl(*both, ONE).mean() + reverse_kl(*both, ONE).mean()) / 2
    assert adaptive_kl(*both, ONE).mean().item() == pytest.approx(mean.item(), abs=1e-12)


def test_total_variation_is_symmetric_and_at_most_one():
    student, teacher = 100 * logits(50, 6), 100 * logits(50, 6, seed=1)
    values = total_variation(student, teacher, rows(50)).values
    torch.testing.assert_close(values, total_variation(teacher, student, rows(50)).values)
    assert values.min() >= 0
    assert 0.99 < values.max() <= 1 + 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_soft_labels_take_any_divergence(name):
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    term = soft_labels(student, teacher, OVER, 2.0, False, DIVERGENCES[name])
    torch.testing.assert_close(
        term.values, DIVERGENCES[name](student, teacher, OVER, 2.0, False).values
    )


def test_cross_entropy_of_computed_logits_equals_pytorch():
    labels = torch.tensor([[1, 4, -100], [0, -100, 2]])
    parts = head(4, 5)
    value = cross_entropy(LinearLogits(*parts), labels, OVER).mean()
    dense = functional.linear(*parts)
    torch.testing.assert_close(value, functional.cross_entropy(dense.mT, labels))


def rows(number):
    return Items.where("sample", torch.ones(number, dtype=torch.bool))
