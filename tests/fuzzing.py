"""Random inputs by hypothesis: a fixed number, the same ones each time, or new ones for a time."""

from __future__ import annotations

import os
import time

from hypothesis import HealthCheck, given, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", 120))
"""How long `make test-fuzz` tries inputs for each target."""


def fuzz(strategy, act, examples, **own):
    """Do something with a number of inputs, which are the same ones each time."""
    _checker(strategy, act, examples, derandomize=True, **own)()


def fuzz_for(seconds, strategy, act):
    """Do something with new inputs until a time is up; print how many there were."""
    tried, start = 0, time.monotonic()

    def act_in_time(value):
        nonlocal tried
        if time.monotonic() - start < seconds:
            tried += 1
            act(value)

    check = _checker(strategy, act_in_time, 200, deadline=None)
    while time.monotonic() - start < seconds:
        check()
    print(f"{tried} inputs in {time.monotonic() - start:.0f} s")


def _checker(strategy, act, examples, **own):
    unchecked = list(HealthCheck)

    @settings(max_examples=examples, database=None, suppress_health_check=unchecked, **own)
    @given(strategy)
    def check(value):
        act(value)

    return check
