"""`Tally`: how much models have written, and how fast."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from gkd_core.distributed.data_parallel import add_counts


class Tally:
    """Counts written text from one reading to the next, on this rank."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._counts = {"texts": 0, "tokens": 0, "truncated": 0, "used": 0, "stale": 0}
        self._seconds = 0.0
        self._mismatch: float | None = None

    def add(self, texts: Iterable[Tensor], end_ids: Iterable[int], seconds: float) -> None:
        """Add texts that were written at once.

        Args:
            texts: Token ids of each, up to the end token.
            end_ids: Tokens that end a text; one that does not end with them was truncated.
            seconds: Time that it took.
        """
        ends = set(end_ids)
        for text in texts:
            self._counts["texts"] += 1
            self._counts["tokens"] += len(text)
            self._counts["truncated"] += not ends.intersection(text[-1:].tolist())
        self._seconds += seconds

    def add_used(self, number: int, stale: int) -> None:
        """Add the student's texts of a step.

        Args:
            number: How many rows have them.
            stale: How many of them it wrote in earlier steps, with other weights.
        """
        self._counts["used"] += number
        self._counts["stale"] += stale

    def add_mismatch(self, value: float) -> None:
        """Add how far the text was drawn from training's distribution, the same on all ranks."""
        self._mismatch = value

    def read(self) -> dict[str, float]:
        """Return the numbers of all ranks since the last reading, which all ranks ask for."""
        found = add_counts(self._counts)
        seconds, mismatch = self._seconds, self._mismatch
        self._reset()
        numbers = {} if mismatch is None else {"rollout/mismatch": mismatch}
        if found["used"]:
            numbers["rollout/stale"] = found["stale"] / found["used"]
        if not found["texts"]:
            return numbers
        return numbers | {
            "rollout/tokens": found["tokens"] / found["texts"],
            "rollout/truncated": found["truncated"] / found["texts"],
            "rollout/tokens_per_second": found["tokens"] / seconds if seconds else 0.0,
        }
