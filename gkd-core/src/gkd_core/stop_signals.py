"""Signals that ask a run to stop.

While steps are taken, the first one is a request: the step under way ends, a checkpoint is saved,
and the run stops. A second one stops it at once, and so does one at any other time.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)
"""Those that ask for an end; the last one when the time of a run is up."""

ECHO = 0.5
"""Seconds after a signal in which others are taken for the same one.

A terminal or a batch system may signal ranks and their launcher, which tells its ranks as well.
"""


@dataclass
class _StopRequest:
    """What has been asked of this process.

    Attributes:
        patient: Whether a request waits for the end of a step.
        request: Name of the first signal.
        at: When it came.
        stopping: Whether the run is ending.
    """

    patient: bool = False
    request: str | None = None
    at: float = 0.0
    stopping: bool = False

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Take note of a signal, or stop at once."""
        now, name = time.monotonic(), _name(number)
        if self.request is not None and now - self.at < ECHO:
            return
        if self.stopping and number != signal.SIGINT:
            return  # a launcher ends its ranks once one of them is gone
        first = self.request is None
        self.request, self.at = name, now
        if first and self.patient:
            return
        self.stopping = True
        raise KeyboardInterrupt(f"interrupted by {name}")


_request = _StopRequest()


@contextmanager
def heeded() -> Iterator[None]:
    """Handle the signals, except those that the caller of the process ignores, as nohup does."""
    global _request
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request = _StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _request.receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _request = _StopRequest()  # a process may go on with other runs


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Ask this process to stop when a time is up.

    Args:
        seconds: The time from now on; None: no limit.
    """
    if seconds is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def patience() -> Iterator[None]:
    """Let the first signal wait until `stop` is called, at the latest at the end.

    Raises:
        KeyboardInterrupt: It came when nothing asked for it any more.
    """
    _request.patient = True
    try:
        yield
    finally:
        _request.patient = False
    if requested() and not _request.stopping:
        stop("after the last step")


def requested() -> bool:
    """Return whether a signal has asked this process to stop."""
    return _request.request is not None


def stop(where: str) -> None:
    """Stop as requested.

    Args:
        where: What has been done.

    Raises:
        KeyboardInterrupt: Always.
    """
    _request.stopping = True
    raise KeyboardInterrupt(
        f"stopped by {_request.request or 'another process of the run'} {where}"
    )


def _name(number: int) -> str:
    return "the time limit" if number == signal.SIGALRM else signal.Signals(number).name
