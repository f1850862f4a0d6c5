"""The learning rate of each step, by schedule."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from gkd_core.config.schema import TrainingConfig
from gkd_core.optim.schedules import lr_factor


def _rates(total=10, **settings):
    config = TrainingConfig(**settings)
    return [lr_factor(config, index, total) for index in range(total)]


def test_inverse_square_root_falls_from_the_peak_that_the_warm_up_reaches():
    found = _rates(warmup=0.4, lr_schedule="inverse-sqrt")
    after = [1, math.sqrt(4 / 5), math.sqrt(4 / 6), math.sqrt(4 / 7), math.sqrt(1 / 2), 2 / 3]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, *after])


def test_inverse_square_root_without_warm_up_begins_at_the_peak():
    assert _rates(total=4, warmup=0, lr_schedule="inverse-sqrt") == pytest.approx(
        [1, 0.70710678, 0.57735027, 0.5]
    )


def test_cosine_with_a_floor_ends_above_it():
    found = _rates(total=4, warmup=0, lr_schedule="cosine", lr_floor=0.2)
    assert found == pytest.approx([1, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 0.6, 0.3171572875])


def test_stable_rate_decays_at_the_end_only():
    settings = {"warmup": 0.2, "lr_schedule": "warmup-stable-decay", "lr_decay_share": 0.4}
    assert _rates(**settings) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert _rates(**settings, lr_floor=0.5)[6:] == pytest.approx([1, 0.875, 0.75, 0.625])


def test_decay_that_would_begin_in_the_warm_up_begins_after_it():
    settings = {"warmup": 0.5, "lr_schedule": "warmup-stable-decay", "lr_decay_share": 1.0}
    found = _rates(total=8, **settings)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])


def test_polynomial_of_power_two_is_quadratic_and_of_power_one_linear():
    assert _rates(total=4, warmup=0, lr_schedule="polynomial") == pytest.approx(
        [1, 0.5625, 0.25, 0.0625]
    )
    linear = _rates(warmup=0.3, lr_schedule="linear")
    assert _rates(warmup=0.3, lr_schedule="polynomial", lr_power=1.0) == linear


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_floor_of_zero_changes_no_bit(schedule):
    settings = {"warmup": 0.1, "lr_schedule": schedule}
    with_floor = _rates(total=50, **settings, lr_floor=0.25)
    without = _rates(total=50, **settings)
    assert with_floor[5:] == [0.25 + 0.75 * rate for rate in without[5:]]
    done = [(index - 5) / 45 for index in range(5, 50)]
    expected = {
        "linear": [1 - x for x in done],
        "cosine": [(1 + math.cos(math.pi * x)) / 2 for x in done],
        "polynomial": [(1 - x) ** 2 for x in done],
    }
    assert without[5:] == expected[schedule]


@pytest.mark.parametrize("schedule", ["constant", "inverse-sqrt"])
def test_floor_of_a_schedule_that_has_none_is_refused(schedule):
    with pytest.raises(ValidationError, match=r"lr_floor = 0.1 .*lr_schedule = '" + schedule):
        TrainingConfig(lr_schedule=schedule, lr_floor=0.1)
