"""Numbers worked out by hand for z_t = (ln 3, 0), that is p_t = (3/4, 1/4)."""

from math import log

import pytest
import torch

from gkd_methods_classic.pd import PD
from gkd_methods_classic.soft import Soft

TEACHER = torch.tensor([[log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)


@pytest.fixture
def pd(terms):
    def _pd(student=STUDENT, teacher=TEACHER, labels=None):
        return terms(PD(), {"logits": student}, {"logits": teacher}, labels)["pd"]

    return _pd


def test_pd_is_the_cross_entropy_of_the_teachers_distribution(pd):
    assert pd().item() == pytest.approx(log(2), abs=1e-12)


def test_the_least_value_is_the_teachers_entropy(pd):
    student = TEACHER.clone().requires_grad_()
    loss = pd(student)
    loss.backward()
    entropy = -0.75 * log(0.75) - 0.25 * log(0.25)
    assert loss.item() == pytest.approx(entropy, abs=1e-12) == pytest.approx(0.562335, abs=1e-6)
    assert student.grad.abs().max().item() < 1e-15


def test_gradient_is_the_difference_of_the_distributions(pd):
    student = STUDENT.clone().requires_grad_()
    pd(student).backward()
    assert torch.allclose(student.grad, torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]).double())


def test_labels_of_a_classification_are_not_read(pd):
    assert pd(labels=torch.tensor([0])) == pd(labels=torch.tensor([1])) == pd()


def test_language_models_are_compared_where_there_is_a_target(pd):
    student = torch.stack([STUDENT, STUDENT + torch.tensor([0.0, 9.0])], dim=1)
    teacher = torch.stack([TEACHER, TEACHER], dim=1)
    assert pd(student, teacher, torch.tensor([[1, -100]])).item() == pytest.approx(log(2))


def test_a_regression_is_the_squared_error(pd):
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    assert pd(student, teacher).item() == pytest.approx((4 + 0.25) / 2)


def test_pd_is_soft_with_cross_entropy_and_no_temperature(pd, terms):
    method = Soft(Soft.Config(divergence="soft-cross-entropy", temperature=1))
    soft = terms(method, {"logits": STUDENT}, {"logits": TEACHER})["soft"]
    assert pd().item() == soft.item()
