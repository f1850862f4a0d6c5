"""Errors that a user can cause.

Each message says what is wrong with which value, where the value came from, and what to do.
The command line prints these without a traceback and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GkdError(Exception):
    """The base of all errors that a user can cause and fix."""


class ConfigError(GkdError):
    """A configuration value, a flag or an expression is invalid."""


class MethodError(GkdError):
    """A method cannot be used as requested: it is unknown, or does not support the models."""


class DataError(GkdError):
    """A data file, a row or a dataset is invalid."""


class PluginError(GkdError):
    """A plugin violates the contract, or two plugins conflict."""


def escape_controls(text: str) -> str:
    """Return a text in which characters that would steer a terminal are shown as escapes.

    Messages quote data, settings and models. Ends of lines stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; what it is called if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
