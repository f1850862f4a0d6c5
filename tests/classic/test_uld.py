"""Sorted predictions of two tokenizers, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gkd_core.api import Models
from gkd_core.testing import check_method
from gkd_methods_classic.alignment import pair_in_order
from gkd_methods_classic.uld import ULD

START, END = (1, -1, -1), (2, -1, -1)


def logits(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.fixture
def uld(term_of, info):
    def _uld(batch, student, teacher, **options):
        method = ULD(ULD.Config(**options))
        method.models = Models(info("student"), info("teacher"), "causal-lm")
        return term_of(method, batch, student, teacher)["uld"]

    return _uld


@pytest.fixture
def batch(reading):
    """Three tokens between a start and an end token, which the teacher reads as two."""
    view = reading([[(1, 0, 2), (2, 2, 7)]])
    return reading([[START, (3, 0, 1), (4, 1, 5), (5, 5, 7), END]], {"teacher": view})


def test_golden_value(uld, batch):
    """The teacher has no start token: the second token is the only one that both predict."""
    student = torch.rand(1, 5, 3, dtype=torch.float64)
    teacher = torch.rand(1, 2, 4, dtype=torch.float64)
    student[0, 1], teacher[0, 0] = logits([0.2, 0.5, 0.3]), logits([0.1, 0.6, 0.05, 0.25])
    term = uld(batch, student, teacher)
    # |0.5 - 0.6| + |0.3 - 0.25| + |0.2 - 0.1| + |0 - 0.05|
    expected = torch.tensor([[0, 0.3, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(term.values, expected, rtol=0, atol=1e-12)
    assert term.over.mask.tolist() == [[False, True, False, False, False]]
    assert term.mean().item() == pytest.approx(0.3, abs=1e-12)


def test_temperature_divides_both(uld, batch):
    student = torch.zeros(1, 5, 2, dtype=torch.float64)
    teacher = logits([[[16 / 17, 1 / 17]] * 2])
    # Without: |1/2 - 16/17| twice; at a temperature of 2 the odds of 16 are 4.
    assert uld(batch, student, teacher).mean().item() == pytest.approx(15 / 17)
    assert uld(batch, student, teacher, temperature=2).mean().item() == pytest.approx(0.6)


def test_limitation_it_is_blind_to_the_identity_of_tokens(uld, batch):
    teacher = logits([[[0.5, 0.3, 0.15, 0.05]] * 2])
    student = logits([[[0.05, 0.15, 0.5, 0.3]] * 5]).requires_grad_()
    loss = uld(batch, student, teacher).mean()
    assert loss.item() == pytest.approx(0, abs=1e-15)


def test_no_gradient_reaches_the_teacher(uld, batch):
    student = logits([[[0.2, 0.5, 0.3]] * 5]).requires_grad_()
    uld(batch, student, logits([[[0.1, 0.6, 0.3]] * 2])).mean().backward()
    assert student.grad[0, 1].abs().sum() > 0
    assert not student.grad[0, [0, 2, 3, 4]].any()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_special_tokens_and_tokens_without_text_keep_both_in_step(reading, side):
    plain = [START, (3, 0, 1), (4, 1, 5), (5, 5, 7)]
    marked = [START, START, (9, 0, 0), (3, 0, 1), (4, 1, 5), (5, 5, 7), (9, 7, 7), END]
    rows = [[plain], [marked]]
    mine, theirs = rows if side == "teacher" else rows[::-1]
    pairs = pair_in_order(reading(mine), reading(theirs))
    short, long = (
        (pairs.student, pairs.teacher) if side == "teacher" else (pairs.teacher, pairs.student)
    )
    assert short.tolist() == [0, 1, 2]
    assert long.tolist() == [2, 3, 4]


def test_rows_of_different_lengths_are_compared_up_to_the_shorter(reading):
    words = [START, *[(3 + n, n, n + 1) for n in range(6)]]
    batch, view = reading([words[:3], words]), reading([words, words[:2]])
    pairs = pair_in_order(batch, view)
    assert list(zip(pairs.rows.tolist(), pairs.student.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]


def test_a_prompt_does_not_count(reading):
    words = [START, *[(3 + n, n, n + 1) for n in range(6)]]
    batch = reading([words])
    counts = torch.tensor([[False] * 4 + [True] * 3])
    answer = replace(
        batch, loss_mask=counts, labels=batch.labels.masked_fill(~counts.roll(-1, 1), -100)
    )
    assert pair_in_order(answer, answer).student.tolist() == [3, 4, 5]


def test_texts_without_a_pair_of_tokens_have_neither_loss_nor_gradient(uld, reading):
    batch = reading([[START, (3, 0, 1)]], {"teacher": reading([[(1, 0, 1)]])})
    student = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    term = uld(batch, student, logits([[[0.1, 0.6, 0.3]]]))
    term.mean().backward()
    assert (term.over.count, term.mean().item()) == (0, 0)
    assert not student.grad.any()


@pytest.mark.slow
def test_two_ranks_that_share_the_models_find_the_same():
    check_method(ULD, ranks=2)
