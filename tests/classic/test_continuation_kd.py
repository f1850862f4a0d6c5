"""Numbers worked out by hand for z_s = (1, 0), z_t = (2, 1) and phi = 0.1.

z_s - phi z_t = (0.8, -0.1), whose squared length is 0.65; 0.55 of it lies beyond the margin 0.1.
"""

from math import exp, log

import pytest
import torch
from pydantic import ValidationError

from gkd_core.api import MethodError, Models, Step
from gkd_methods_classic.annealing_kd import AnnealingKD
from gkd_methods_classic.continuation_kd import ContinuationKD

TEACHER = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0])
CE = log(1 + exp(-1))


@pytest.fixture
def continuation_kd(terms):
    def _continuation_kd(
        student=STUDENT, teacher=TEACHER, labels=LABELS, index=0, total=30, **options
    ):
        method = ContinuationKD(ContinuationKD.Config(**options))
        logits = {"logits": student}, {"logits": teacher}
        return terms(method, *logits, labels, index=index, total=total)

    return _continuation_kd


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 0.55), ({"margin": 0}, 0.65), ({"reduction": "mean"}, 0.225), ({"margin": 7}, 0)],
)
def test_what_exceeds_the_margin_counts(continuation_kd, options, expected):
    found = continuation_kd(**options)
    assert found["soft"].item() == pytest.approx(expected, abs=1e-12)
    assert found["hard"].item() == 0


def test_the_margin_is_taken_off_each_sample(continuation_kd):
    # The second student agrees: the mean distance is 0.325, but 0.55 of one sample exceeds.
    student = torch.cat([STUDENT, 0.1 * TEACHER])
    found = continuation_kd(student, TEACHER.repeat(2, 1), torch.tensor([0, 0]))
    assert found["soft"].item() == pytest.approx(0.275, abs=1e-12)


def test_within_the_margin_there_is_no_gradient(continuation_kd):
    student = (0.1 * TEACHER + 0.01).requires_grad_()
    sum(continuation_kd(student).values()).backward()
    assert student.grad.abs().max().item() == 0


@pytest.mark.parametrize(
    ("epoch", "psi", "phi"),
    [(0, 0, 0.1), (3, 3 / 40, 0.2), (19, 19 / 40, 0.7), (20, 0.5, 0.7)],
)
def test_psi_and_phi_follow_the_papers_30_epochs(continuation_kd, epoch, psi, phi):
    found = continuation_kd(index=epoch, margin=0)
    distance = ((STUDENT - phi * TEACHER) ** 2).sum().item()
    assert found["soft"].item() == pytest.approx((1 - psi) * distance, abs=1e-12)
    assert found["hard"].item() == pytest.approx(psi * CE, abs=1e-12)


@pytest.mark.parametrize("epoch", [21, 29])
def test_at_the_end_the_labels_alone_count_and_no_teacher_runs(continuation_kd, info, epoch):
    found = continuation_kd(index=epoch)
    assert {name: loss.item() for name, loss in found.items()} == {"hard": pytest.approx(CE)}
    models = Models(info("student"), info("teacher"))
    for index, sides in ((20, ["student", "teacher"]), (epoch, ["student"])):
        paths = ContinuationKD().reads(models, Step(index, 30, 0, "test", torch.Generator()))
        assert [path.partition(".")[0] for path in paths] == sides


def test_the_temperature_ends_at_one_and_not_below(continuation_kd):
    for index in (27, 29):
        found = continuation_kd(TEACHER, index=index, margin=0, labels_from=1, psi=0)
        assert found["soft"].item() == pytest.approx(0, abs=1e-12)


def test_without_a_margin_and_with_a_step_it_is_annealing_kd(continuation_kd, terms):
    options = {"margin": 0, "psi": "step(0 -> 1, over=50%)", "labels_from": 1}
    method = AnnealingKD(AnnealingKD.Config(max_temperature=10))
    for index in (0, 7, 14):
        found = continuation_kd(index=index, **options)
        logits = {"logits": STUDENT}, {"logits": TEACHER}
        expected = terms(method, *logits, LABELS, index=index, total=30)["annealing-kd"]
        assert (found["soft"].item(), found["hard"].item()) == (expected.item(), 0)
    assert continuation_kd(index=15, **options)["hard"].item() == pytest.approx(CE)


def test_unlabeled_data_is_refused(continuation_kd):
    with pytest.raises(MethodError, match="continuation-kd needs labels"):
        continuation_kd(labels=None)


@pytest.mark.parametrize("psi", [-0.1, "linear(0 -> 2)"])
def test_a_weight_that_is_no_share_is_refused(psi):
    with pytest.raises(ValidationError, match="must stay from 0 to 1"):
        ContinuationKD.Config(psi=psi)
