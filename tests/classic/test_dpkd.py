"""Numbers worked out by hand for p = (1/2, 1/3, 1/6) and q = (1/4, 1/2, 1/4), with the label 2.

The teacher prefers the first token, the student the second. The margin is ln(1/2) - ln(3/2) =
-ln 3 = -1.098612.
"""

from math import exp, log

import pytest
import torch

from gkd_methods_classic.dpkd import DPKD

TEACHER = torch.tensor([[1 / 2, 1 / 3, 1 / 6]], dtype=torch.float64).log()
STUDENT = torch.tensor([[1 / 4, 1 / 2, 1 / 4]], dtype=torch.float64).log()
LABELS = torch.tensor([2])


@pytest.fixture
def dpkd(terms):
    def _dpkd(student=STUDENT, teacher=TEACHER, labels=LABELS, **options):
        method = DPKD(DPKD.Config(**options))
        return terms(method, {"logits": student}, {"logits": teacher}, labels)

    return _dpkd


def test_golden_values(dpkd):
    found = dpkd()
    assert found["preference"].item() == pytest.approx(0.5 * log(1 + exp(0.1 * log(3))), abs=1e-12)
    assert found["preference"].item() == pytest.approx(0.374793, abs=1e-6)
    assert found["hard"].item() == pytest.approx(0.5 * log(4), abs=1e-12)


def test_where_both_prefer_the_same_token_the_loss_is_ln_2_without_a_gradient(dpkd):
    student = (3 * TEACHER).requires_grad_()
    loss = dpkd(student, ratio=1)["preference"]
    loss.backward()
    assert loss.item() == pytest.approx(log(2))
    assert student.grad.abs().max() == 0


def test_it_falls_strictly_as_the_student_comes_closer(dpkd):
    shares = [0.5, 0.6, 0.7]
    losses = [
        dpkd((STUDENT.exp() * s + TEACHER.exp() * (1 - s)).log())["preference"].item()
        for s in shares
    ]
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses)


def test_without_a_factor_the_preference_is_ln_2(dpkd):
    assert dpkd(beta=1e-12, ratio=1)["preference"].item() == pytest.approx(log(2))


def test_gradient_pushes_the_tokens_apart(dpkd):
    """-beta sigmoid(-beta m) on the teacher's token, the opposite on the student's own."""
    student = STUDENT.clone().requires_grad_()
    dpkd(student, ratio=1)["preference"].backward()
    push = 0.1 / (1 + exp(-0.1 * log(3)))
    expected = torch.tensor([[-push, push, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)


def test_tokens_without_a_target_and_padded_vocabularies_change_nothing(dpkd):
    student = torch.stack([STUDENT, 9 * STUDENT], dim=1)
    teacher = torch.stack([TEACHER, TEACHER], dim=1)
    wide = torch.nn.functional.pad(teacher, (0, 2), value=50.0)
    labels = torch.tensor([[2, -100]])
    for known in (teacher, wide):
        found = dpkd(student, known, labels)
        assert found["preference"].item() == pytest.approx(dpkd()["preference"].item())
