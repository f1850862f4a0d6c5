"""Learning-rate factors of the student's parts in a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from gkd_core.errors import MethodError
from gkd_core.models.parts import Part, part_name

if TYPE_CHECKING:
    from gkd_core.objective.step_plan import StepRequest


def check_factors(factors: Mapping[Part, float], layers: int, owner: str) -> Mapping[Part, float]:
    """Return the factors that a method requests, after checking them.

    Args:
        factors: What the method returned from `lr_factors`.
        layers: Number of blocks in the student.
        owner: Name of the method.

    Raises:
        MethodError: The student has no such part, or a factor is negative or not finite.
    """
    for part, factor in factors.items():
        if part not in ("embedding", "head", *range(1, layers + 1)):
            raise MethodError(
                f"{owner} sets the learning rate of {part!r}, which is not a part of the student. "
                f"Its parts are 'embedding', the blocks 1 to {layers}, and 'head'"
            )
        if not 0 <= factor < math.inf:
            raise MethodError(
                f"{owner} sets the learning rate of {part_name(part)} to {factor} times that of "
                "the stage. Return 0 to freeze it, or a positive number"
            )
    return factors


def join_factors(everyone: Iterable[StepRequest]) -> Mapping[Part, float]:
    """Return the factors of a step, by part; parts that no method names have the factor 1.

    Raises:
        MethodError: Two methods, or a method for two of its teachers, want different factors.
    """
    found: dict[Part, tuple[str, float]] = {}
    for request in everyone:
        for part, factor in request.lr_factors.items():
            other, value = found.setdefault(part, (request.member.name, factor))
            if value != factor:
                raise MethodError(
                    f"{other} sets the learning rate of the student's {part_name(part)} to {value} "
                    f"times that of the stage, and {request.member.name} to {factor} times. They "
                    "cannot be combined; use them in separate stages"
                )
    return {part: factor for part, (_, factor) in found.items()}
