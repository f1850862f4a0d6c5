from math import log

import pytest
import torch
from pydantic import ValidationError

from gkd_core.api import MethodError
from gkd_methods_classic.kd import KD

TEACHER = torch.tensor([[log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)
LABELS = torch.tensor([1])


@pytest.fixture
def kd(terms):
    def _kd(student=STUDENT, labels=LABELS, index=0, **options):
        method = KD(KD.Config(**options))
        return terms(method, {"logits": student}, {"logits": TEACHER}, labels, index=index)

    return _kd


def test_kd_weighs_the_divergence_against_the_labels(kd):
    found = kd(temperature=2, alpha=0.9)
    assert found["soft"].item() == pytest.approx(0.9 * 0.145363, abs=1e-6)
    assert found["hard"].item() == pytest.approx(0.1 * log(2), abs=1e-12)


@pytest.mark.parametrize(("alpha", "gone"), [(0, "soft"), (1, "hard")])
def test_alpha_at_an_end_leaves_one_term(kd, alpha, gone):
    assert [name for name, value in kd(alpha=alpha).items() if value.item() == 0] == [gone]


def test_a_student_that_equals_the_teacher_is_drawn_to_the_labels_alone(kd):
    student = TEACHER.clone().requires_grad_()
    sum(kd(student, alpha=0.5).values()).backward()
    assert torch.allclose(student.grad, 0.5 * torch.tensor([[0.75, -0.75]]).double())


def test_alpha_and_temperature_follow_their_schedules(kd):
    options = {"alpha": "linear(1 -> 0)", "temperature": "linear(3 -> 1)"}
    found = kd(index=5, **options)
    expected = kd(alpha=0.5, temperature=2)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )


def test_unlabeled_data_is_refused(kd):
    with pytest.raises(MethodError, match="kd needs labels"):
        kd(labels=None)


@pytest.mark.parametrize("alpha", [-0.1, "linear(0.5 -> 2)"])
def test_alpha_that_would_give_a_term_a_negative_weight_is_refused(alpha):
    with pytest.raises(ValidationError, match="must stay from 0 to 1"):
        KD.Config(alpha=alpha)
