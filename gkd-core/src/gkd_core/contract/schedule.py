"""`Schedule`: a value that changes during a stage, written as text.

0.5                          always 0.5
linear(0 -> 1)               over the whole stage
cosine(1 -> 0, over=1000)    over the first 1000 steps, then constant
linear(10 -> 1, over=66%)    over the first 66 % of the steps, then constant
step(0 -> 1, over=50%)       0 before half of the stage, 1 from then on
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from gkd_core.contract.step import Step

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
GRAMMAR = re.compile(
    rf"\s*(?P<shape>[a-z]+)\s*\(\s*(?P<start>{NUMBER})\s*->\s*(?P<end>{NUMBER})\s*"
    rf"(?:,\s*over\s*=\s*(?P<over>{NUMBER})\s*(?P<percent>%)?\s*)?\)\s*"
)
SHAPES = ("linear", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """A value as a function of the training step.

    It is the type of an option that may be a number or a schedule text, such as 0.5 or
    `linear(0 -> 1, over=50%)`; pydantic parses both.

    Attributes:
        shape: `constant`, `linear`, `cosine` or `step`.
        start: Value at the first step.
        end: Value from the end of the ramp on.
        over: Length of the ramp: steps, or a share of the stage if `relative`.
        relative: Whether `over` is a share.
    """

    shape: str
    start: float
    end: float
    over: float = 1.0
    relative: bool = True

    @classmethod
    def parse(cls, value: str | float | Schedule) -> Schedule:
        """Parse a number or a schedule text; a `Schedule` is returned unchanged.

        Raises:
            ValueError: The value is neither, or not finite, or `over` is not positive.
        """
        if isinstance(value, Schedule):
            return value
        if not isinstance(value, str):
            _refuse_endless(value, float(value))
            return cls("constant", float(value), float(value))
        if re.fullmatch(rf"\s*{NUMBER}\s*", value):
            return cls.parse(float(value))
        match = GRAMMAR.fullmatch(value)
        if match is None or match["shape"] not in SHAPES:
            raise ValueError(
                f"{value!r} is neither a number nor a schedule such as 'linear(0 -> 1, over=50%)'; "
                f"the shapes are {', '.join(SHAPES)}"
            )
        relative = match["over"] is None or match["percent"] is not None
        start, end = float(match["start"]), float(match["end"])
        over = 1.0 if match["over"] is None else float(match["over"]) / (100 if relative else 1)
        _refuse_endless(value, start, end, over)
        if over <= 0:
            raise ValueError(f"{value!r}: `over` must be greater than 0")
        return cls(match["shape"], start, end, over, relative)

    @overload
    def at(self, step: Step) -> float: ...

    @overload
    def at(self, step: int, total: int) -> float: ...

    def at(self, step: Step | int, total: int = 0) -> float:
        """Return the value at a step.

        Args:
            step: The training step; or the index of a step, from 0.
            total: Number of steps in the stage, if `step` is an index.
        """
        if isinstance(step, Step):
            return self._value(step.index, step.total)
        return self._value(step, total)

    def _value(self, step: int, total: int) -> float:
        if self.shape == "constant":
            return self.start
        ramp = self.over * total if self.relative else self.over
        done = min(step / ramp, 1.0)
        if self.shape == "step":
            done = math.floor(done)
        elif self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    @property
    def is_ever_nonzero(self) -> bool:
        """Whether the value is other than 0 at any step; if not, what it weighs is not needed."""
        return bool(self.start or self.end)

    def __str__(self) -> str:
        if self.shape == "constant":
            return _shortest(self.start)
        over = f"{_shortest(self.over, 100)}%" if self.relative else _shortest(self.over)
        return f"{self.shape}({_shortest(self.start)} -> {_shortest(self.end)}, over={over})"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let pydantic accept numbers and texts, and write them back in the same form."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(cls._serialize),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the accepted values."""
        return {"anyOf": [{"type": "number"}, {"type": "string"}]}

    @classmethod
    def _validate(cls, value: Any) -> Schedule:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Schedule)):
            raise ValueError(f"must be a number or a schedule, got {value!r}")
        return cls.parse(value)

    def _serialize(self) -> float | str:
        return self.start if self.shape == "constant" else str(self)


ALWAYS_1 = Schedule("constant", 1.0, 1.0)


def _refuse_endless(value: str | float, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{value!r} must be finite")


def _shortest(number: float, scale: int = 1) -> str:
    """Write `scale * number` with the digits that reading it back needs, at least 6."""
    texts = (f"{scale * number:.{digits}g}" for digits in range(6, 18))
    return next((text for text in texts if float(text) / scale == number), repr(scale * number))
