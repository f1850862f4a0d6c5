"""A signal ends a run after the step under way; a second one ends it at once."""

import os
import signal
import time

import pytest

from gkd_core import stop_signals
from gkd_core.stop_signals import SIGNALS, heeded, patience, requested, stop, time_limit


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_for_the_end_of_the_step(number):
    name = "the time limit" if number == signal.SIGALRM else number.name
    with heeded(), patience():
        assert not requested()
        os.kill(os.getpid(), number)
        assert requested()
        with pytest.raises(KeyboardInterrupt, match=f"stopped by {name} after step 3"):
            stop("after step 3")
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(stop_signals, "ECHO", 0)
    with heeded(), patience():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="interrupted by SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher ends its ranks


def test_the_echo_of_a_signal_is_not_a_second_one():
    with heeded(), pytest.raises(KeyboardInterrupt, match="by SIGINT after the last step"):
        _signaled(signal.SIGINT, signal.SIGTERM)


def _signaled(*numbers):
    with patience():
        for number in numbers:
            os.kill(os.getpid(), number)


def test_a_run_stops_when_its_time_is_up():
    with heeded(), time_limit(0.02), patience():
        while not requested():
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt, match="stopped by the time limit after step 1"):
            stop("after step 1")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_signal_stops_at_once_where_no_steps_are_taken():
    with heeded(), pytest.raises(KeyboardInterrupt, match="interrupted by SIGUSR1"):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_what_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeded():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
