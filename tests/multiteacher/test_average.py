"""`average`: fixed and scheduled weights."""

import pytest
import torch

from gkd_core.errors import MethodError
from gkd_methods_multiteacher.average import Average

LOGITS = {"logits": torch.zeros(2, 2)}


@pytest.fixture
def average(case):
    return lambda weights, teachers=2: case(
        Average, {"weights": weights}, LOGITS, [LOGITS] * teachers
    )


def test_teachers_count_alike_unless_told_otherwise(average):
    assert average([], 3).weights() == [1 / 3] * 3


def test_weights_are_divided_by_their_sum(average):
    assert average([1, 3]).weights() == [0.25, 0.75]


def test_weights_follow_their_schedules(average):
    combiner = average(["linear(1 -> 0)", "linear(0 -> 1)"])
    assert combiner.weights(0) == [1, 0]
    assert combiner.weights(5) == [0.5, 0.5]
    assert combiner.weights(9) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("second", ["step(0 -> 1, over=60%)", "step(0 -> 1, over=6)"])
def test_a_step_in_which_no_teacher_has_a_weight_is_named(average, second):
    combiner = average(["step(1 -> 0, over=50%)", second])
    combiner.combiner.check()
    assert (combiner.weights(4), combiner.weights(6)) == ([1, 0], [0, 1])
    with pytest.raises(MethodError, match=r"only weights of 0 in step 5\. Let a weight"):
        combiner.weights(5)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, 2, 3], "3 weights for 2 teachers"),
        ([1, -1], "negative"),
        ([0, 0], "only weights of 0"),
        (["linear(1 -> 0)", 0], "only weights of 0 at the start or the end"),
    ],
)
def test_weights_that_mean_nothing_are_refused(average, weights, said):
    with pytest.raises(MethodError, match=said):
        average(weights).combiner.check()
