"""Numbers worked out by hand for z_t = (ln 3, 0), that is p_t = (3/4, 1/4), and z_s = (0, 0)."""

from math import log

import pytest
import torch

from gkd_methods_classic.soft import Soft

TEACHER = torch.tensor([[log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)
KL = 0.75 * log(1.5) + 0.25 * log(0.5)


@pytest.fixture
def soft(terms):
    def _soft(student=STUDENT, teacher=TEACHER, labels=None, **options):
        method = Soft(Soft.Config(**options))
        return terms(method, {"logits": student}, {"logits": teacher}, labels)["soft"]

    return _soft


def test_soft_is_the_kl_divergence_at_temperature_one(soft):
    assert soft(temperature=1).item() == pytest.approx(KL, abs=1e-12)
    assert pytest.approx(0.130812, abs=1e-6) == KL


@pytest.mark.parametrize(("temperature", "expected"), [(2, 0.145363), (1e4, 0.150869)])
def test_soft_is_scaled_by_the_squared_temperature(soft, temperature, expected):
    # For T to infinity: sum (d - mean d)^2 / 2C with d = z_t - z_s.
    assert soft(temperature=temperature).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"divergence": "reverse-kl"}, 0.5 * log(2 / 3) + 0.5 * log(2)),
        # The mixture of (3/4, 1/4) and (1/2, 1/2) is (5/8, 3/8).
        ({"divergence": "js"}, (0.75 * log(6 / 5) + 0.25 * log(2 / 3) + 0.5 * log(16 / 15)) / 2),
        # With a tenth of the teacher it is (0.525, 0.475).
        ({"divergence": "skew-kl"}, 0.75 * log(0.75 / 0.525) + 0.25 * log(0.25 / 0.475)),
        # With a tenth of the student it is (0.725, 0.275).
        ({"divergence": "skew-reverse-kl"}, 0.5 * log(0.5 / 0.725) + 0.5 * log(0.5 / 0.275)),
        # The head is the first class, with half of the distance.
        ({"divergence": "adaptive-kl"}, (KL + 0.5 * log(2 / 3) + 0.5 * log(2)) / 2),
        # The ends of the range of beta have names of their own.
        ({"divergence": "js", "beta": 0}, KL),
        ({"divergence": "js", "beta": 1}, 0.5 * log(2 / 3) + 0.5 * log(2)),
        ({"divergence": "total-variation"}, 0.25),
        ({"divergence": "soft-cross-entropy"}, log(2)),
    ],
)
def test_distributions_may_be_compared_by_another_divergence(soft, options, expected):
    assert soft(temperature=1, **options).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("divergence", "share"), [("js", {"beta": 0.01}), ("skew-kl", {"alpha": 0.01})]
)
def test_a_mixture_with_little_of_the_teacher_is_near_the_kl(soft, divergence, share):
    found = soft(temperature=1, divergence=divergence, **share).item()
    per_share = found / 0.01 if divergence == "js" else found
    assert per_share == pytest.approx(KL, rel=0.03)


@pytest.mark.parametrize(("mu", "share"), [(0.4, 0.5), (0.7, 0.5), (0.9, 0.6)])
def test_mu_says_how_much_probability_the_head_has(soft, mu, share):
    """The classes have 1/6, 1/30 and 4/30 of the distance 1/3; the first is always in the head."""
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    student = torch.zeros_like(teacher)
    forward, reverse, found = (
        soft(student, teacher, temperature=1, divergence=divergence, mu=mu).item()
        for divergence in ("kl", "reverse-kl", "adaptive-kl")
    )
    assert found == pytest.approx(share * forward + (1 - share) * reverse, abs=1e-12)


@pytest.mark.parametrize("divergence", ["kl", "reverse-kl", "js", "skew-kl", "total-variation"])
def test_every_divergence_is_zero_where_student_and_teacher_agree(soft, divergence):
    student = TEACHER.clone().requires_grad_()
    loss = soft(student, divergence=divergence)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert student.grad.abs().max().item() < 1e-15


def test_the_temperature_follows_its_schedule(terms):
    method = Soft(Soft.Config(temperature="linear(3 -> 1)"))
    logits = {"logits": STUDENT}, {"logits": TEACHER}
    found = [terms(method, *logits, index=index)["soft"].item() for index in (5, 10)]
    assert found == [pytest.approx(0.145363, abs=1e-6), pytest.approx(KL)]


def test_soft_can_leave_the_scale_out(soft):
    scaled, plain = soft(temperature=2), soft(temperature=2, scale_t2=False)
    assert plain.item() == pytest.approx(scaled.item() / 4, abs=1e-12)


def test_gradient_at_temperature_one_is_the_difference_of_the_distributions(soft):
    student = STUDENT.clone().requires_grad_()
    soft(student, temperature=1).backward()
    assert torch.allclose(student.grad, torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]).double())


def test_scale_alone_decides_the_size_of_the_gradient_at_high_temperature(soft):
    def slope(**options):
        student = STUDENT.clone().requires_grad_()
        soft(student, temperature=10, **options).backward()
        return student.grad.abs().max().item()

    assert slope() == pytest.approx(0.274377, abs=1e-6)
    assert slope(scale_t2=False) == pytest.approx(0.002744, abs=1e-6)


def test_a_constant_added_to_logits_changes_nothing(soft):
    assert soft(STUDENT + 3, TEACHER - 5).item() == pytest.approx(soft().item(), abs=1e-12)


def test_labels_of_a_classification_are_not_read(soft):
    assert soft(labels=torch.tensor([0])) == soft(labels=torch.tensor([1])) == soft()


def test_language_models_are_compared_where_there_is_a_target(soft):
    student = torch.stack([STUDENT, STUDENT + torch.tensor([0.0, 9.0])], dim=1)
    teacher = torch.stack([TEACHER, TEACHER], dim=1)
    labels = torch.tensor([[1, -100]])
    assert soft(student, teacher, labels, temperature=1).item() == pytest.approx(KL, abs=1e-12)


def test_a_regression_is_the_squared_error(soft):
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    assert soft(student, teacher).item() == pytest.approx((4 + 0.25) / 2)
