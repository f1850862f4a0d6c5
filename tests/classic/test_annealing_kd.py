"""Numbers worked out by hand; the teacher's logits are (2, 1)."""

import pytest
import torch

from gkd_methods_classic.annealing_kd import AnnealingKD

TEACHER = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def annealing_kd(terms):
    def _annealing_kd(student=STUDENT, teacher=TEACHER, labels=None, index=0, total=700, **options):
        method = AnnealingKD(AnnealingKD.Config(**options))
        return terms(
            method, {"logits": student}, {"logits": teacher}, labels, index=index, total=total
        )["annealing-kd"]

    return _annealing_kd


@pytest.mark.parametrize(
    ("index", "sevenths"), [(0, 1), (99, 1), (100, 2), (350, 4), (599, 6), (600, 7), (699, 7)]
)
def test_the_factor_rises_in_equal_steps_and_ends_at_one(annealing_kd, index, sevenths):
    # With z_s = 0 the loss is Phi^2 ||z_t||^2 = 5 Phi^2.
    found = annealing_kd(torch.zeros_like(STUDENT), index=index)
    assert found.item() == pytest.approx(5 * (sevenths / 7) ** 2, abs=1e-12)


@pytest.mark.parametrize("total", [1, 3, 10, 13, 700, 12345])
def test_every_stage_starts_at_the_smallest_factor_and_never_falls(annealing_kd, total):
    zero = torch.zeros_like(STUDENT)
    steps = range(total) if total < 100 else [0, total // 3, total // 2, total - 1]
    found = [annealing_kd(zero, index=index, total=total).item() for index in steps]
    assert found == sorted(found)
    assert found[0] == pytest.approx(5 / 49)
    if total >= 7:
        assert found[-1] == pytest.approx(5)


def test_the_last_part_is_a_plain_regression_of_logits(annealing_kd):
    assert annealing_kd(index=650).item() == pytest.approx(1 + 1, abs=1e-12)


def test_the_mean_is_over_the_logits(annealing_kd):
    assert annealing_kd(index=650, reduction="mean").item() == pytest.approx(1, abs=1e-12)


def test_scaling_the_teacher_is_scaling_the_factor(annealing_kd):
    scaled = annealing_kd(teacher=3 * TEACHER, index=0)
    assert scaled.item() == pytest.approx(annealing_kd(index=200).item())


def test_predictions_are_averaged(annealing_kd):
    student, teacher = STUDENT.repeat(2, 1), torch.cat([TEACHER, STUDENT])
    assert annealing_kd(student, teacher, index=650).item() == pytest.approx(1, abs=1e-12)


def test_a_regression_is_annealed_too(annealing_kd):
    student, teacher = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    assert annealing_kd(student, teacher, index=650).item() == pytest.approx(4)
    assert annealing_kd(student, teacher, index=0).item() == pytest.approx((1 - 3 / 7) ** 2)


def test_language_models_are_compared_where_there_is_a_target(annealing_kd):
    student = torch.stack([STUDENT, STUDENT + 9], dim=1)
    teacher = torch.stack([TEACHER, TEACHER], dim=1)
    labels = torch.tensor([[1, -100]])
    assert annealing_kd(student, teacher, labels, index=650).item() == pytest.approx(2)


def test_columns_that_only_one_vocabulary_has_are_left_out(annealing_kd):
    wide = torch.cat([TEACHER, torch.full_like(TEACHER, 50.0)], dim=-1)
    labels = torch.tensor([[1]])
    for student, teacher in ((STUDENT, wide), (wide - 1, TEACHER)):
        found = annealing_kd(student[:, None], teacher[:, None], labels, index=650)
        assert found.item() == pytest.approx(2)
