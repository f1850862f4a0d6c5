"""The remaining time of a run: of the current stage, and of all stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta


class RunClock:
    """Estimates the rest of a run from the pace of the stage under way.

    Args:
        now: Returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._costs: dict[str, float] = {}
        self._stage = ""
        self._total = self._done = 0
        self._begun = 0.0

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Begin a run.

        Args:
            costs: The arithmetic of each stage that is not finished, in order, in any unit.
        """
        self._costs = dict(costs)

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` steps, or continue it after `done` of them."""
        self._stage, self._total, self._done, self._begun = name, total, done, self._now()

    @property
    def place(self) -> str:
        """The position of the stage in the run, such as `2/3`; empty if it is the only one."""
        names = list(self._costs)
        if len(names) < 2 or self._stage not in names:
            return ""
        return f"{names.index(self._stage) + 1}/{len(names)}"

    def left(self, done: int) -> tuple[float, float] | None:
        """Return the seconds that the stage and the run still take; None before a step is done.

        Args:
            done: Steps of the stage that are done.
        """
        if done <= self._done:
            return None
        seconds = (self._now() - self._begun) / (done - self._done)
        stage = seconds * (self._total - done)
        own = self._costs.get(self._stage, 0.0)
        names = list(self._costs)
        later = names[names.index(self._stage) + 1 :] if own > 0 else ()
        others = sum(self._costs[name] for name in later) / own if later else 0.0
        return stage, stage + others * seconds * self._total


def clock_time(seconds: float) -> str:
    """Return a duration such as `0:02:10`."""
    return str(timedelta(seconds=round(seconds)))
