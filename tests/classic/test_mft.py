"""Numbers worked out by hand for p = (1/2, 1/4, 1/4), q = (1/3, 1/3, 1/3) and the label 1.

The teacher is wrong: c = (0.2 + 1/4) / (1 + 1/4) = 0.36, p' = (0.32, 0.52, 0.16).
"""

from math import log

import pytest
import torch

from gkd_methods_classic.mft import MFT

TEACHER = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
STUDENT = torch.zeros(1, 3, dtype=torch.float64)
CORRECTED = torch.tensor([[0.32, 0.52, 0.16]], dtype=torch.float64)


@pytest.fixture
def mft(terms):
    def _mft(student=STUDENT, teacher=TEACHER, labels=(1,), **options):
        method = MFT(MFT.Config(**options))
        given = torch.tensor(labels)
        return terms(method, {"logits": student}, {"logits": teacher}, given)["mft"]

    return _mft


def test_golden_value(mft):
    expected = 0.32 * log(0.96) + 0.52 * log(1.56) + 0.16 * log(0.48)
    assert mft().item() == pytest.approx(expected, abs=1e-12)
    assert mft().item() == pytest.approx(0.100739, abs=1e-6)


def test_it_is_zero_without_a_gradient_at_the_corrected_distribution(mft):
    student = CORRECTED.log().requires_grad_()
    loss = mft(student)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max().item() < 1e-12


def test_gradient_is_the_difference_to_the_corrected_distribution(mft):
    student = STUDENT.clone().requires_grad_()
    mft(student).backward()
    torch.testing.assert_close(student.grad, STUDENT.softmax(-1) - CORRECTED)


def test_a_teacher_that_is_right_is_not_corrected(mft):
    p = TEACHER.exp()[0]
    expected = sum(float(x) * log(3 * float(x)) for x in p)
    assert mft(labels=(0,)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_the_label_wins_by_the_threshold(mft, threshold):
    """The minimum is where the label leads by the threshold, and the rest keeps its shape."""
    share = (threshold + 0.25) / 1.25
    best = (1 - share) * TEACHER.exp() + share * torch.tensor([[0.0, 1.0, 0.0]])
    assert (best[0, 1] - best[0, 0]).item() == pytest.approx(threshold, abs=1e-7)
    assert mft(best.log(), threshold=threshold).item() == pytest.approx(0, abs=1e-12)


def test_a_constant_added_and_tokens_without_a_target_change_nothing(mft):
    expected = mft().item()
    assert mft(STUDENT + 3, TEACHER - 5).item() == pytest.approx(expected, abs=1e-12)
    student = torch.stack([STUDENT, 9 * TEACHER], dim=1)
    teacher = torch.nn.functional.pad(torch.stack([TEACHER, STUDENT], dim=1), (0, 2), value=50.0)
    assert mft(student, teacher, [[1, -100]]).item() == pytest.approx(expected, abs=1e-12)
