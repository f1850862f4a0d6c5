"""Durations on the command line."""

from __future__ import annotations

import re
from typing import Any

import click

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PART = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhd])")


class Duration(click.ParamType[float]):
    """A duration such as `45m` or `1h30m`, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, float):
            return value
        parts = PART.findall(value)
        seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
        if "".join(map("".join, parts)) != value or seconds == 0:
            self.fail(f"{value!r} is not a duration. Write 90s, 45m, 1h30m or 2d", param, ctx)
        return seconds
