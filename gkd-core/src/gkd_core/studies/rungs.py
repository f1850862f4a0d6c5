"""`Rungs`: which candidates of a search go on, by halving that waits for nobody.

A rung stands at the first, the second, the fourth ... evaluation of a run. A candidate passes it if
it is among the better half of all that have come so far, so that one that was stopped may pass
later, when worse ones have come (ASHA; Li et al., 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rungs:
    """The rungs of runs of equal length.

    Attributes:
        evaluations: Evaluations of a whole run.
        rising: Whether larger values of the metric are better.
    """

    evaluations: int
    rising: bool

    def stopped_at(self, own: Sequence[float], others: Sequence[Sequence[float]]) -> int | None:
        """Return the number of the evaluation at which a candidate falls behind, if it does.

        Args:
            own: Its metric at each evaluation so far.
            others: The same of all other candidates.
        """
        reached = (number for number in self._places() if number <= len(own))
        return next((n for n in reached if not self._passes(own, others, n)), None)

    def _places(self) -> Iterator[int]:
        """Yield the evaluations at which there is a rung; none is at the last one."""
        number = 1
        while number < self.evaluations:
            yield number
            number *= 2

    def _passes(self, own: Sequence[float], others: Sequence[Sequence[float]], number: int) -> bool:
        value, *rivals = (self._score(v[number - 1]) for v in [own, *others] if len(v) >= number)
        better = sum(rival > value for rival in rivals)
        return better < max(1, (1 + len(rivals)) // 2)

    def _score(self, value: float) -> float:
        if math.isnan(value):
            return -math.inf
        return value if self.rising else -value
