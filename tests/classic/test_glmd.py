"""Numbers worked out by hand for z_t = (ln 3, 0), that is p_t = (3/4, 1/4), and z_s = (0, 0)."""

from math import log

import pytest
import torch

from gkd_core.api import LinearLogits, MethodError
from gkd_methods_classic.glmd import GLMD

TEACHER = torch.tensor([[log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)
KL = 0.75 * log(1.5) + 0.25 * log(0.5)


@pytest.fixture
def glmd(terms):
    def _glmd(student=STUDENT, teacher=TEACHER, labels=None, mask=None, **options):
        method = GLMD(GLMD.Config(**options))
        logits = {"logits": student}, {"logits": teacher}
        return terms(method, *logits, labels, mask=mask)["glmd"]

    return _glmd


def test_a_task_is_learnt_without_temperature_and_labels(glmd):
    assert glmd().item() == pytest.approx(KL, abs=1e-12)
    assert glmd(labels=torch.tensor([0])) == glmd(labels=torch.tensor([1])) == glmd()


def test_language_models_are_compared_at_a_high_temperature(glmd):
    labels = torch.tensor([[1]])
    found = glmd(STUDENT[:, None], TEACHER[:, None], labels)
    # T^2 KL at T = 15 is near its limit, sum (d - mean d)^2 / 2C with d = z_t - z_s.
    assert found.item() == pytest.approx(0.150869, abs=1e-3)
    assert found.item() != pytest.approx(0.150869, abs=1e-6)
    high = glmd(STUDENT[:, None], TEACHER[:, None], labels, temperature=1e4)
    assert high.item() == pytest.approx(0.150869, abs=1e-6)


def test_every_position_but_padding_counts_and_no_label(glmd):
    student = torch.stack([STUDENT] * 3, dim=1).requires_grad_()
    teacher = torch.stack([TEACHER] * 3, dim=1)
    found = glmd(student, teacher, torch.full((1, 3), -100), torch.tensor([[1, 1, 0]]))
    found.backward()
    alone = glmd(STUDENT[:, None], TEACHER[:, None], torch.tensor([[1]]))
    assert found.item() == pytest.approx(alone.item())
    assert student.grad[0, :2].abs().min().item() > 0
    assert student.grad[0, 2].abs().max().item() == 0


def test_equal_predictions_give_zero(glmd):
    assert glmd(TEACHER).item() == 0


def test_what_is_left_out_goes_to_the_nearest_token(glmd):
    # Rows of the teacher's head: the third has the dot products 2 and 1 with the first two, the
    # fourth 0 and 3. The probabilities are 2, 1, 4 and 1 eighths, so the two get 6 and 2 eighths.
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    teacher = LinearLogits(torch.tensor([[[log(2), 0.0]]], dtype=torch.float64), weight, None)
    labels = torch.tensor([[1]])
    given = {"student": STUDENT[:, None], "teacher": teacher, "labels": labels, "temperature": 1.0}
    assert glmd(**given, left_out="nearest").item() == pytest.approx(KL, abs=1e-12)
    dropped = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    assert glmd(**given, left_out="drop").item() == pytest.approx(dropped, abs=1e-12)


def test_the_nearest_tokens_need_the_head_of_the_teacher(glmd):
    teacher = torch.zeros(1, 1, 4, dtype=torch.float64)
    with pytest.raises(MethodError, match="the teacher's output embedding, which is not available"):
        glmd(STUDENT[:, None], teacher, torch.tensor([[1]]), left_out="nearest")
