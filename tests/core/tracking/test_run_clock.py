"""The rest of a run is estimated from the pace of the stage under way."""

from __future__ import annotations

import pytest

from gkd_core.tracking.run_clock import RunClock, clock_time


@pytest.fixture
def times():
    return [0.0]


@pytest.fixture
def clock(times):
    clock = RunClock(lambda: times[0])
    clock.start_run({"teacher": 10.0, "first": 5.0, "second": 20.0})
    return clock


def test_later_stages_take_as_long_as_their_arithmetic_says(clock, times):
    clock.start_stage("first", 100, 0)
    assert clock.left(0) is None
    times[0] = 20.0
    assert clock.left(10) == (180.0, 180.0 + 4 * 200.0)
    assert clock.place == "2/3"


def test_a_resumed_stage_is_measured_from_where_it_goes_on(clock, times):
    clock.start_stage("second", 100, 50)
    times[0] = 10.0
    assert clock.left(60) == (40.0, 40.0)


def test_a_stage_alone_has_no_place_and_no_others(times):
    clock = RunClock(lambda: times[0])
    clock.start_stage("distil", 10, 0)
    times[0] = 1.0
    assert clock.left(1) == (9.0, 9.0)
    assert clock.place == ""


def test_times_are_readable():
    assert clock_time(7269.6) == "2:01:10"
