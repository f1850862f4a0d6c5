"""Numbers on the command line: finite, and in the digits 0 to 9 only."""

from __future__ import annotations

import math
from typing import Any

import click
from click.types import FloatParamType, IntParamType


class _InAscii(click.ParamType[Any]):
    """A number that nobody reads in another way than Python."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; fail if a text is none in ASCII, or not finite."""
        if isinstance(value, str) and not (value.isascii() and "_" not in value and _ends(value)):
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return super().convert(value, param, ctx)


class Whole(_InAscii, IntParamType):
    """A whole number."""


class WholeOr(Whole):
    """A whole number, or one of some words.

    Args:
        words: The words.
    """

    def __init__(self, *words: str) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word or the number."""
        if value in self._words:
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(self._words)
            self.fail(f"{error.message.removesuffix('.')}; name a number, {words}.", param, ctx)


class WholeRange(_InAscii, click.IntRange):
    """A whole number within bounds."""


class Real(_InAscii, FloatParamType):
    """A number."""


class RealRange(_InAscii, click.FloatRange):
    """A number within bounds."""


def _ends(text: str) -> bool:
    """Return whether a text is no name of a number that is not finite."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True  # whoever reads it says what is wrong
