"""`TimedPattern`: a regular expression of a user, with a limit to how long it may search."""

from __future__ import annotations

import regex

from gkd_core.errors import ConfigError

SECONDS = 1.0
"""Time in which it must have found something; patterns can take for ever."""


class TimedPattern:
    """A regular expression of a user.

    Args:
        text: The expression.
        setting: The setting that holds it.

    Raises:
        ConfigError: The text is no regular expression.
    """

    def __init__(self, text: str, setting: str) -> None:
        try:
            self._pattern = regex.compile(text)
        except regex.error as error:
            raise ConfigError(
                f"{setting} = {text!r} is not a regular expression: {error}"
            ) from error
        self._said = f"{setting} = {text!r}"

    def is_in(self, text: str) -> bool:
        """Return whether a text has the expression somewhere.

        Raises:
            ConfigError: The search takes too long.
        """
        try:
            return self._pattern.search(text, timeout=SECONDS) is not None
        except TimeoutError as error:
            raise ConfigError(
                f"{self._said} did not finish within {SECONDS:g} s on an answer of {len(text)} "
                "characters: write it without nested repetitions"
            ) from error
