"""Numbers on the command line: finite, and in the digits 0 to 9 only."""

from __future__ import annotations

import math
from typing import Any

import click
from click.types import FloatParamType, IntParamType


class Whole(IntParamType):
    """A whole number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return super().convert(_in_ascii(self, value, param, ctx), param, ctx)


class WholeRange(click.IntRange):
    """A whole number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return super().convert(_in_ascii(self, value, param, ctx), param, ctx)


class Real(FloatParamType):
    """A number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        return super().convert(_in_ascii(self, value, param, ctx), param, ctx)


class RealRange(click.FloatRange):
    """A number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        return super().convert(_in_ascii(self, value, param, ctx), param, ctx)


def _in_ascii(
    kind: click.ParamType[Any],
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> Any:
    """Return a value as it is; fail if it is a text that Python, but nobody else, reads so."""
    if isinstance(value, str) and not (value.isascii() and "_" not in value and _ends(value)):
        kind.fail(f"{value!r} is not a valid {kind.name}.", param, ctx)
    return value


def _ends(text: str) -> bool:
    """Return whether a text is no name of a number that is not finite."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True  # whoever reads it says what is wrong
