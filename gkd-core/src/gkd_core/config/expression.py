"""Method expressions: `pkd+soft`, `2*pkd+0.5*soft`, `linear(0 -> 1, over=50%)*soft+hard`.

expression = member {"+" member}
member     = [weight "*"] name
weight     = number | schedule
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gkd_core.errors import ConfigError
from gkd_core.method import NAME
from gkd_core.training.schedules import Schedule

WEIGHT = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z_]+\s*\([^()]*\)")
WORD = re.compile(r"[\w-]+")
SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Member:
    """One method of an expression.

    Attributes:
        name: The method.
        weight: Factor of its loss terms.
        column: 0-based place of the name in the text.
    """

    name: str
    weight: Schedule
    column: int = field(compare=False)

    def __str__(self) -> str:
        weight = str(self.weight)
        return self.name if weight == "1" else f"{weight}*{self.name}"


@dataclass(frozen=True)
class Expression:
    """A weighted sum of methods, as written from left to right."""

    members: tuple[Member, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(member.name for member in self.members)

    def __str__(self) -> str:
        return "+".join(map(str, self.members))


def parse_expression(text: str, origin: str = "") -> Expression:
    """Read a method expression.

    Args:
        text: The expression.
        origin: Where it was given, for messages.

    Raises:
        ConfigError: The text is no expression; shows the place.
    """
    return Expression(tuple(_Parser(text, origin).members()))


def pointer(text: str, column: int) -> str:
    """Return two further lines for a message: the expression, and a mark below a place in it."""
    shown = re.sub(r"\s", " ", text)
    return f"\n    {shown}\n    {' ' * column}^"


class _Parser:
    """Reads members from left to right; `at` is the next character."""

    def __init__(self, text: str, origin: str) -> None:
        self.text = text
        self.origin = origin
        self.at = 0

    def members(self) -> Iterator[Member]:
        seen: set[str] = set()
        while True:
            member = self.member()
            if member.name in seen:
                raise self.error(
                    f"'{member.name}' occurs twice; give it one weight instead", member.column
                )
            seen.add(member.name)
            yield member
            if self.at == len(self.text):
                return
            if not self.take("+"):
                raise self.error("expected '+' between methods", self.at)

    def member(self) -> Member:
        self.skip_space()
        weight = self.weight()
        column = self.at
        word = WORD.match(self.text, self.at)
        if word is None:
            raise self.error("a method name is missing", column)
        self.advance(word)
        if self.text.startswith("*", self.at):
            raise self.error(
                f"'{word[0]}' cannot weigh a method; write one weight, a number or a schedule, "
                "before the method, as in '2*pkd'",
                column,
            )
        if not NAME.fullmatch(word[0]):
            raise self.error(
                f"'{word[0]}' is no method name: those are lower-case words joined by '-'",
                column,
            )
        return Member(word[0], weight, column)

    def weight(self) -> Schedule:
        match = WEIGHT.match(self.text, self.at)
        if match is None:
            return Schedule.parse(1.0)
        column = self.at
        self.advance(match)
        if not self.take("*"):
            raise self.error(f"expected '*' between the weight {match[0]} and a method", self.at)
        try:
            schedule = Schedule.parse(match[0])
        except ValueError as error:
            raise self.error(str(error), column) from error
        if min(schedule.start, schedule.end) < 0:
            raise self.error(
                f"the weight {match[0]} is negative, which would train the student away from its "
                "teacher",
                column,
            )
        return schedule

    def take(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self.at += len(sign)
        self.skip_space()
        return True

    def advance(self, match: re.Match[str]) -> None:
        self.at = match.end()
        self.skip_space()

    def skip_space(self) -> None:
        space = SPACE.match(self.text, self.at)
        self.at = self.at if space is None else space.end()

    def error(self, reason: str, column: int) -> ConfigError:
        origin = f" ({self.origin})" if self.origin else ""
        return ConfigError(f"method expression{origin}: {reason}{pointer(self.text, column)}")
