"""Losses of a student against the likeliest words of its teacher, and all others as one."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from gkd_core.api import Items, LinearLogits, MethodError, TopKLogits, divergence
from gkd_core.losses import (
    adaptive_kl,
    chunked,
    cross_entropy,
    js,
    kl,
    logits_mse,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)

WORDS = 7
MASK = torch.tensor([[True, True, False], [True, False, True]])
OVER = Items.where("token", MASK)


@divergence
def own(log_student, log_teacher, sum):
    return sum(log_teacher.exp() * (log_teacher - log_student))


BOUNDED = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": partial(js, beta=0.3),
    "skew_kl": partial(skew_kl, alpha=0.2),
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.2),
    "total_variation": total_variation,
    "own": own,
}
"""f-divergences: merging outcomes never increases them."""

DIVERGENCES = BOUNDED | {"soft_cross_entropy": soft_cross_entropy}


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def merged(logits, ids, temperature):
    """Return the log-probabilities of words and of all others, as one reads them in a book."""
    p = (logits / temperature).softmax(-1)
    words = p.gather(-1, ids)
    others = torch.ones_like(p).scatter(-1, ids, 0)
    return torch.cat([words, (p * others).sum(-1, keepdim=True)], -1).log()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3, WORDS - 1])
def test_value_and_gradient_are_those_of_the_merged_distributions(name, k):
    student, teacher = logits(2, 3, WORDS).requires_grad_(), logits(2, 3, WORDS, seed=1)
    known = TopKLogits.of(teacher, k, 2.0)
    found = DIVERGENCES[name](student, known, OVER, 2.0)
    # As logits at temperature 1, log-probabilities are what they are at any.
    sides = (merged(x, known.ids, 2.0) for x in (student, teacher))
    expected = DIVERGENCES[name](*sides, OVER, 1.0)
    torch.testing.assert_close(found.values, 4 * expected.values)
    mine, theirs = (torch.autograd.grad(t.mean(), student)[0] for t in (found, 4 * expected))
    torch.testing.assert_close(mine, theirs)
    assert (mine[~MASK] == 0).all()


def test_golden_numbers():
    # The teacher has 1/2, 1/4, 1/8, 1/8, the student 1/4 each: the tail of k = 1 is 1/2 to 3/4.
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    over = Items.where("sample", torch.tensor([True]))
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    known = TopKLogits.of(teacher, 1)
    assert known.ids.tolist() == [[0]]
    assert known.log_probs.exp().tolist() == [[0.5, pytest.approx(0.5)]]
    loss = kl(student, known, over).mean()
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    loss.backward()
    assert student.grad[0].tolist() == pytest.approx([-0.25, 1 / 12, 1 / 12, 1 / 12])
    two = kl(student, TopKLogits.of(teacher, 2), over).mean().item()
    assert two == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.25 / 0.5))
    assert two == pytest.approx(kl(student, teacher, over).mean().item()), "its tail is like q's"


@pytest.mark.parametrize("name", BOUNDED)
def test_more_words_come_nearer_to_the_whole_distributions_from_below(name):
    student, teacher = logits(2, 3, WORDS).requires_grad_(), logits(2, 3, WORDS, seed=1)
    whole = BOUNDED[name](student, teacher, OVER)
    values = [BOUNDED[name](student, TopKLogits.of(teacher, k), OVER) for k in range(1, WORDS + 1)]
    for fewer, more in pairwise(values):
        assert (fewer.values <= more.values + 1e-12).all()
    assert (values[0].values[MASK] < whole.values[MASK]).all()
    for each in values[-2:]:
        torch.testing.assert_close(each.values, whole.values)
        gradients = (
            torch.autograd.grad(t.mean(), student, retain_graph=True)[0] for t in (each, whole)
        )
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"total_variation"}))
def test_the_teacher_itself_has_no_gradient(name):
    student = logits(2, 3, WORDS).requires_grad_()
    term = DIVERGENCES[name](student, TopKLogits.of(student.detach(), 3), OVER)
    term.mean().backward()
    assert name == "soft_cross_entropy" or term.values.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_logits_of_a_head_are_chunked(monkeypatch):
    tensors = [logits(2, 3, 5), logits(WORDS, 5, seed=2), logits(WORDS, seed=3)]
    known = TopKLogits.of(logits(2, 3, WORDS, seed=1), 2)

    def solve(weights=None):
        own = [tensor.clone().requires_grad_() for tensor in tensors]
        term = kl(LinearLogits(*own), known, OVER)
        total = term.mean() if weights is None else (term.values * weights).sum()
        return term.values, *torch.autograd.grad(total, own)

    weights = logits(2, 3, seed=4)
    once = *solve(), *solve(weights)
    largest = []
    stock = chunked.bucketed
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 2 * WORDS)
    monkeypatch.setattr(chunked, "FUSED_ROWS", 1)
    monkeypatch.setattr(
        chunked, "bucketed", lambda *args: largest.append(len(args[1])) or stock(*args)
    )
    torch.testing.assert_close((*solve(), *solve(weights)), once)
    assert max(largest) == 2
    dense = LinearLogits(*tensors).dense()
    torch.testing.assert_close(once[0], kl(dense, known, OVER).values)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_vocabularies_of_other_widths(name):
    compare = partial(soft_labels, over=OVER, temperature=1.0, divergence=DIVERGENCES[name])
    teacher = logits(2, 3, WORDS, seed=1)
    # What the student lacks is cut: with all words known, that is what the dense loss does.
    narrow = logits(2, 3, WORDS - 2).requires_grad_()
    found, expected = (compare(narrow, t) for t in (TopKLogits.of(teacher, WORDS), teacher))
    torch.testing.assert_close(found.values, expected.values)
    gradients = (torch.autograd.grad(t.mean(), narrow)[0] for t in (found, expected))
    torch.testing.assert_close(*gradients)
    known = TopKLogits.of(teacher, WORDS - 1)
    sure = Items.where("token", MASK & (known.ids < WORDS - 2).sum(-1).eq(WORDS - 2))
    assert sure.count > 0, "all words that the student has are known"
    found, expected = (soft_labels(narrow, t, sure, 1.0) for t in (known, teacher))
    torch.testing.assert_close(found.values, expected.values)
    # What the teacher lacks is a part of the tail, so that k = V has one.
    wide = logits(2, 3, WORDS + 2).requires_grad_()
    found = compare(wide, TopKLogits.of(teacher, 3))
    padded = torch.cat([teacher, torch.full((2, 3, 2), -math.inf, dtype=torch.float64)], -1)
    torch.testing.assert_close(found.values, compare(wide, TopKLogits.of(padded, 3)).values)


def test_what_a_few_words_do_not_determine_is_refused_by_name():
    student, known = logits(2, 3, WORDS), TopKLogits.of(logits(2, 3, WORDS, seed=1), 2)
    labels = torch.zeros(2, 3, dtype=torch.int64)
    for compute, wanted in (
        (lambda: adaptive_kl(student, known, OVER), "the adaptive divergence"),
        (lambda: logits_mse(student, known, OVER), "the squared error of logits"),
        (lambda: cross_entropy(known, labels, OVER), "a loss of the teacher"),
        (known.dense, "the logits of all words"),
    ):
        with pytest.raises(MethodError, match=f"its 2 likeliest words.*do not determine.*{wanted}"):
            compute()
    with pytest.raises(MethodError, match=r"temperature is 2, but .* likeliest words at 1,"):
        kl(student, known, OVER, 2.0)
