"""`Budget`: what a student may cost, and what it must be worth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gkd_core.errors import ConfigError

AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-zA-Z%]*)")

SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
MILLISECONDS = {"ms": 1.0, "s": 1000.0, "us": 0.001}
BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
WEIGHTS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
SHARE = {"%": 0.01, "": 1.0}
TIMES = "x"
"""Unit of a latency that is given as a multiple of the teacher's."""


@dataclass(frozen=True)
class Budget:
    """The limits of a student's cost, and its required quality; None sets no limit.

    Attributes:
        milliseconds: Median time for one sample.
        times_teacher: The same as a multiple of the teacher's.
        bytes: Size of its weights in fp32.
        weights: Number of its weights.
        kept: Share of the teacher's quality on validation rows.
    """

    milliseconds: float | None = None
    times_teacher: float | None = None
    bytes: int | None = None
    weights: int | None = None
    kept: float | None = None

    @classmethod
    def read(
        cls, latency: str | None, size: str | None, weights: str | None, kept: str | None
    ) -> Budget:
        """Read the options of `gkd search`.

        Raises:
            ConfigError: One is no amount, or none is given.
        """
        if not any((latency, size, weights, kept)):
            raise ConfigError(
                "nothing limits the student: add --max-latency 5ms (or 0.5x the teacher's), "
                "--max-size 20MB, --max-weights 10M or --min-kept 97%"
            )
        relative = latency is not None and latency.strip().endswith(TIMES)
        times = amount(latency, {TIMES: 1.0}, "--max-latency") if relative else None
        found = None if relative else amount(latency, MILLISECONDS, "--max-latency")
        most_bytes = amount(size, BYTES, "--max-size")
        most_weights = amount(weights, WEIGHTS, "--max-weights")
        return cls(
            found,
            times,
            None if most_bytes is None else int(most_bytes),
            None if most_weights is None else int(most_weights),
            amount(kept, SHARE, "--min-kept"),
        )

    def latency(self, teacher: float) -> float | None:
        """Return the limit of the latency in milliseconds; None if there is none.

        Args:
            teacher: The teacher's median time for one sample.
        """
        return self.milliseconds if self.times_teacher is None else self.times_teacher * teacher

    def too_large(self, weights: int) -> str:
        """Return the reason that a student of this size misses the budget; empty if it does not."""
        if self.weights is not None and weights > self.weights:
            return f"{weights:,} weights; {self.weights:,} are allowed"
        if self.bytes is not None and 4 * weights > self.bytes:
            return f"{4 * weights / 1e6:.1f} MB; {self.bytes / 1e6:.1f} MB are allowed"
        return ""

    def too_slow(self, milliseconds: float, teacher: float) -> str:
        """Return the reason that a student this slow misses the budget; empty if it does not."""
        limit = self.latency(teacher)
        if limit is None or milliseconds <= limit:
            return ""
        return f"{milliseconds:.2f} ms; {limit:.2f} ms are allowed"


def amount(text: str | None, units: Mapping[str, float], flag: str) -> float | None:
    """Return a number with a unit, such as `5ms`, in the unit of factor 1; None of None.

    Args:
        text: The text.
        units: The factor of each unit.
        flag: The option, for the message.

    Raises:
        ConfigError: It is no such number.
    """
    if text is None:
        return None
    match = AMOUNT.fullmatch(text.strip())
    if match is None or match["unit"] not in units or not float(match["number"]):
        known = ", ".join(unit or "no unit" for unit in units)
        raise ConfigError(f"{flag} {text}: expected a number above 0 with a unit: {known}")
    return float(match["number"]) * units[match["unit"]]
