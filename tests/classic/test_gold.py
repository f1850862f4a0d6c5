"""Spans of two tokenizers and their measures, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from gkd_core.api import Models, js
from gkd_core.testing import check_method
from gkd_methods_classic.alignment import pair_spans
from gkd_methods_classic.gold import GOLD, mixture_divergence

START, END = (0, -1, -1), (0, -1, -1)


def logits(*rows):
    return torch.tensor([rows], dtype=torch.float64).log()


def spans_of(side, pairs):
    """First position of each span, and the span whose later tokens each position predicts."""
    return side.first[pairs.rows, pairs.spans].tolist(), side.following.tolist()


@pytest.fixture
def gold(term_of, info):
    def _gold(batch, student, teacher, tokens=("", "a", "b"), others=("", "a", "ab"), **options):
        method = GOLD(GOLD.Config(**options))
        models = (
            replace(info(name), tokens=own)
            for name, own in (("student", tokens), ("teacher", others))
        )
        method.models = Models(*models, "causal-lm")
        return term_of(method, batch, student, teacher)

    return _gold


def test_golden_value(reading, gold):
    """The student reads `ab` as `a` and `b`, the teacher as one token; `a` is common to both."""
    view = reading([[START, (2, 0, 2)]])
    batch = reading([[START, (1, 0, 1), (2, 1, 2)]], {"teacher": view})
    student = logits([0.2, 0.5, 0.3], [0.2, 0.4, 0.4], [1 / 3] * 3)
    teacher = logits([0.5, 0.3, 0.2], [1 / 3] * 3)
    terms = gold(batch, student, teacher)
    # q = 0.4 (0.2, 0.5, 0.3) = (0.08, 0.2, 0.12), p = (0.5, 0.3, 0.2); of `a` 0.2 and 0.3, mean
    # 0.25. The others, sorted: 0.12, 0.08 against 0.5, 0.2. One token of three is common.
    matched = (0.3 * log(0.3 / 0.25) + 0.2 * log(0.2 / 0.25)) / 2
    assert terms["matched"].mean().item() == pytest.approx(matched / 3, abs=1e-12)
    assert terms["unmatched"].mean().item() == pytest.approx(2 / 3 * (0.38 + 0.12), abs=1e-12)
    assert terms["matched"].over.mask.tolist() == [[True, False, False]]
    weighed = gold(batch, student, teacher, matched_weight=2, unmatched_weight=0)
    assert weighed["matched"].mean().item() == pytest.approx(2 * matched, abs=1e-12)
    assert weighed["unmatched"].mean().item() == 0


def test_the_measure_of_a_span_is_the_product_of_its_conditional_probabilities(reading):
    batch = reading([[START, (1, 0, 1), (2, 1, 2), (3, 2, 4)]])
    view = reading([[START, (9, 0, 4)]])
    pairs = pair_spans(batch, view)
    conditional = logits(0.5, 0.4, 0.25, 1.0)
    assert pairs.student.chain(conditional)[0, 0].exp().item() == pytest.approx(0.4 * 0.25)


def test_equal_tokenizers_give_the_divergence_of_on_policy_distillation(reading, gold):
    batch = reading([[START, (1, 0, 2), (2, 2, 5), (1, 5, 6), END], [START, (2, 0, 1)]])
    tokens = ("c", "a", "b")
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, generator=draw).double() for _ in range(2))
    terms = gold(batch, student, teacher, tokens, tokens, beta=0.3)
    text = replace(batch, labels=batch.labels.masked_fill(batch.labels == 0, -100))
    expected = js(student, teacher, text.targets, beta=0.3)
    torch.testing.assert_close(terms["matched"].values, expected.values, rtol=0, atol=1e-12)
    assert terms["matched"].mean().item() == pytest.approx(expected.mean().item())
    assert terms["unmatched"].values.abs().max() == 0
    equal = gold(batch, student, student, tokens, tokens)["matched"].values
    assert equal.abs().max() < 1e-15


def test_divergence_of_measures_is_zero_only_where_they_are_equal():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50, 6, generator=draw).double() for _ in range(2))
    assert (mixture_divergence(one, other, 0.3) > 0).all()
    assert mixture_divergence(one, one, 0.3).abs().max() < 1e-12
    swapped = mixture_divergence(other, one, 0.7)
    torch.testing.assert_close(mixture_divergence(one, other, 0.3), swapped)


@pytest.mark.parametrize(
    ("mine", "theirs", "student", "teacher"),
    [
        # Whole words against pieces, and a start token that only one of both has.
        (
            [START, (1, 0, 4), (2, 5, 9)],
            [(1, 0, 2), (2, 2, 4), (3, 4, 9)],
            ([1], [[-1, -1, -1]]),
            ([1], [[-1, -1, -1]]),
        ),
        # The two bytes of a character are two tokens with one place for one model.
        (
            [START, (1, 0, 2), (2, 0, 2), (3, 2, 3)],
            [START, (9, 0, 2), (8, 2, 3)],
            ([0, 2], [[-1, 0, -1, -1]]),
            ([0, 1], [[-1, -1, -1]]),
        ),
        # A space of its own, an end token, and a token without text.
        (
            [START, (1, 0, 1), (2, 1, 2), (3, 2, 4), END],
            [START, (1, 0, 1), (3, 2, 4), (7, 4, 4)],
            ([0, 1], [[-1, -1, 1, -1, -1]]),
            ([0, 1], [[-1, -1, -1, -1]]),
        ),
        # What is cut for one of both has no pair.
        (
            [START, (1, 0, 2), (2, 2, 3)],
            [START, (1, 0, 2), (2, 2, 4)],
            ([0], [[-1, -1, -1]]),
            ([0], [[-1, -1, -1]]),
        ),
    ],
)
def test_spans_end_at_the_same_byte(reading, mine, theirs, student, teacher):
    pairs = pair_spans(reading([mine]), reading([theirs]))
    assert spans_of(pairs.student, pairs) == student
    assert spans_of(pairs.teacher, pairs) == teacher


def test_no_gradient_reaches_what_is_not_compared(reading, gold):
    view = reading([[START, (2, 0, 2)]])
    batch = reading([[START, (1, 0, 1), (2, 1, 2), END]], {"teacher": view})
    student = torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True)
    terms = gold(batch, student, logits([0.5, 0.3, 0.2], [1 / 3] * 3))
    sum(term.mean() for term in terms.values()).backward()
    assert student.grad[0, :2].abs().sum(-1).min() > 0
    assert not student.grad[0, 2:].any()


def test_vocabularies_without_a_common_token_are_compared_sorted_alone(reading, gold):
    view = reading([[START, (2, 0, 2)]])
    batch = reading([[START, (1, 0, 2)]], {"teacher": view})
    student = logits([0.2, 0.6, 0.2], [1 / 3] * 3).requires_grad_()
    teacher = logits([0.3, 0.2, 0.5], [1 / 3] * 3)
    terms = gold(batch, student, teacher, ("", "a", "b"), ("", "c", "d"))
    assert terms["matched"].mean().item() == 0
    # 0.6, 0.2, 0.2 against 0.5, 0.3, 0.2, with the whole weight.
    assert terms["unmatched"].mean().item() == pytest.approx(0.2, abs=1e-12)
    sum(term.mean() for term in terms.values()).backward()
    assert student.grad.isfinite().all()
    assert student.grad[0, 0].any()


def test_texts_without_a_common_span_have_neither_loss_nor_gradient(reading, gold):
    view = reading([[START, (2, 0, 3)]])
    batch = reading([[START, (1, 0, 2)]], {"teacher": view})
    student = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    terms = gold(batch, student, logits([0.3, 0.2, 0.5], [1 / 3] * 3))
    total = sum(term.mean() for term in terms.values())
    total.backward()
    assert terms["matched"].over.count == 0
    assert total.item() == 0
    assert not student.grad.any()


@pytest.mark.slow
def test_two_ranks_that_share_the_models_find_the_same():
    check_method(GOLD, ranks=2)
