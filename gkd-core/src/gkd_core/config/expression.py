"""Method expressions: `pkd+soft`, `linear(0 -> 1, over=50%)*soft+hard`, `2*mt-bert(soft)+hard`.

expression = part {"+" part}
part       = [weight "*"] (name | combiner "(" member {"+" member} ")")
member     = [weight "*"] name
weight     = number | schedule
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gkd_core.contract.method_base import NAME
from gkd_core.contract.schedule import SHAPES, Schedule
from gkd_core.errors import ConfigError

WEIGHT = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z_]+\s*\([^()]*\)")
WORD = re.compile(r"[\w-]+")
SPACE = re.compile(r"\s*")

AVERAGE = "average"
"""The combiner of several teachers for methods outside parentheses."""


@dataclass(frozen=True)
class WeightedMethod:
    """One method of an expression.

    Attributes:
        name: The method.
        weight: Factor of its loss terms.
        column: 0-based column of the name in the text.
    """

    name: str
    weight: Schedule
    column: int = field(compare=False)

    def __str__(self) -> str:
        return _weighted(self.name, self.weight)


@dataclass(frozen=True)
class Group:
    """A combiner and the methods whose teachers it combines.

    Attributes:
        combiner: Name of the combiner.
        members: The methods in its parentheses.
        weight: Common factor of the methods.
        column: 0-based column of the combiner in the text.
    """

    combiner: str
    members: tuple[WeightedMethod, ...]
    weight: Schedule
    column: int = field(compare=False)

    def __str__(self) -> str:
        return _weighted(f"{self.combiner}({'+'.join(map(str, self.members))})", self.weight)


@dataclass(frozen=True)
class Expression:
    """A weighted sum of methods, in the order written."""

    parts: tuple[WeightedMethod | Group, ...]

    @property
    def members(self) -> tuple[WeightedMethod, ...]:
        """All methods, including those in parentheses."""
        return tuple(member for part in self.parts for member in _members(part))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups: combiners with their methods."""
        return tuple(part for part in self.parts if isinstance(part, Group))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all methods."""
        return tuple(member.name for member in self.members)

    def group_of(self, method: str) -> Group | None:
        """Return the group that contains a method, or None."""
        return next((g for g in self.groups if method in (m.name for m in g.members)), None)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


def _members(part: WeightedMethod | Group) -> tuple[WeightedMethod, ...]:
    return part.members if isinstance(part, Group) else (part,)


def _weighted(text: str, weight: Schedule) -> str:
    return text if str(weight) == "1" else f"{weight}*{text}"


def parse_expression(text: str, origin: str = "") -> Expression:
    """Parse a method expression.

    Args:
        text: The expression.
        origin: Where it was given, for error messages.

    Raises:
        ConfigError: The text is not a valid expression; the message shows where.
    """
    return Expression(tuple(_Parser(text, origin).expression()))


def pointer(text: str, column: int) -> str:
    """Return two more lines for a message: the expression, and a caret below a column of it."""
    shown = re.sub(r"\s", " ", text)
    return f"\n    {shown}\n    {' ' * column}^"


class _Parser:
    """Parses parts from left to right; `at` is the index of the next character."""

    def __init__(self, text: str, origin: str) -> None:
        self.text = text
        self.origin = origin
        self.at = 0
        self.seen: set[str] = set()

    def expression(self) -> Iterator[WeightedMethod | Group]:
        while True:
            self.skip_space()
            yield self.part()
            if self.at == len(self.text):
                return
            if not self.take("+"):
                raise self.error("expected '+' between methods", self.at)

    def part(self) -> WeightedMethod | Group:
        weight = self.weight()
        column, name = self.name()
        if not self.take("("):
            return WeightedMethod(name, weight, column)
        members = [self.member(name)]
        while self.take("+"):
            members.append(self.member(name))
        if not self.take(")"):
            raise self.error(f"expected '+' or ')' after a method of {name}", self.at)
        return Group(name, tuple(members), weight, column)

    def member(self, combiner: str) -> WeightedMethod:
        weight = self.weight()
        column, name = self.name()
        if self.text.startswith("(", self.at):
            raise self.error(
                f"'{name}' is inside the parentheses of '{combiner}'; a combiner takes "
                "methods, not another combiner",
                column,
            )
        return WeightedMethod(name, weight, column)

    def name(self) -> tuple[int, str]:
        """Parse the name of a method or combiner, which must not have occurred before."""
        column = self.at
        word = WORD.match(self.text, self.at)
        if word is None:
            raise self.error("a method name is missing", column)
        self.advance(word)
        if self.text.startswith("*", self.at):
            raise self.error(
                f"'{word[0]}' is not a weight; write one weight, a number or a schedule, "
                "before the method, as in '2*pkd'",
                column,
            )
        if not NAME.fullmatch(word[0]):
            raise self.error(
                f"'{word[0]}' is not a method name: use lowercase words joined by '-'",
                column,
            )
        if word[0] in self.seen:
            raise self.error(f"'{word[0]}' occurs twice; give it one weight instead", column)
        self.seen.add(word[0])
        return column, word[0]

    def weight(self) -> Schedule:
        match = WEIGHT.match(self.text, self.at)
        if match is None or self.is_group(match):
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
                "teacher; use a weight of 0 or more",
                column,
            )
        return schedule

    def is_group(self, match: re.Match[str]) -> bool:
        """Return whether a match is `average(soft)` and not a weight, `linear(0 -> 1)*soft`."""
        word = match[0].partition("(")[0].strip()
        after = self.text[match.end() :].lstrip()
        return "(" in match[0] and word not in SHAPES and not after.startswith("*")

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
