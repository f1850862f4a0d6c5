"""`Finding`: a tensor of a step that is not finite, and what it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Side = Literal["teacher", "student", "method", "term"]

SHOWN = 5
"""Rows that a message names."""


@dataclass(frozen=True)
class Owner:
    """The owner of a tensor of a step.

    Attributes:
        side: A model, the auxiliary modules of a method, or a term of the loss.
        name: Name of the teacher, the method or the term; empty for the student.
    """

    side: Side
    name: str = ""

    def __str__(self) -> str:
        return f"the {self.side} '{self.name}'" if self.name else f"the {self.side}"


STUDENT = Owner("student")


LARGEST = torch.finfo(torch.float32).max ** 0.5
"""The largest value whose square fp32 can hold."""


@dataclass(frozen=True)
class Excess:
    """A value of a model that is finite, but too large for a loss.

    Attributes:
        owner: The model.
        site: The site that methods read.
        value: The largest magnitude there, above `LARGEST`.
    """

    owner: Owner
    site: str
    value: float

    def __str__(self) -> str:
        values = f"values up to {self.value:.2g} at {self.site}"
        return f"{self.owner} gives {values}, too large to square"


@dataclass(frozen=True)
class Finding:
    """A tensor that is not finite.

    Attributes:
        owner: What it belongs to.
        place: Path of the module whose output it is; empty for a term.
        values: What it contains: `nan`, `inf`, `-inf`.
        rows: Training rows in which it does, counted from 0.
        is_gradient: Whether it is the gradient of the loss by that output.
        excess: What the models compute that explains a term or a gradient, if anything does.
    """

    owner: Owner
    place: str
    values: tuple[str, ...]
    rows: tuple[int, ...] = ()
    is_gradient: bool = False
    excess: Excess | None = None

    @property
    def side(self) -> Side:
        """The side where the cause lies: gradients are computed from the terms."""
        if self.excess is not None:
            return self.excess.owner.side
        return "term" if self.is_gradient else self.owner.side

    @property
    def is_only_negative(self) -> bool:
        """Whether it contains only -inf, as logits do of tokens that a model rules out."""
        return self.values == ("-inf",)

    def __str__(self) -> str:
        return self._what if self.excess is None else f"{self._what}: {self.excess}"

    @property
    def _what(self) -> str:
        contains = f"contains {' and '.join(self.values)}"
        if not self.place:
            return f"{self.owner} {contains}, though the models compute no nan or inf"
        what = "the gradient at the output" if self.is_gradient else "the output"
        return f"in {self.owner}, {what} of {self.place} is the first that {contains}{self._where}"

    @property
    def _where(self) -> str:
        if not self.rows:
            return ""
        shown = ", ".join(map(str, self.rows[:SHOWN]))
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        return f" (training rows {shown}{more}, counted from 0)"
