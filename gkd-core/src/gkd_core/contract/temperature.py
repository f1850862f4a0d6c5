"""`Temperature`: the type of the option that softens distributions."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from gkd_core.contract.schedule import Schedule


def _above_zero(schedule: Schedule) -> Schedule:
    """Reject a schedule that reaches 0; its values lie between its ends."""
    if min(schedule.start, schedule.end) <= 0:
        raise ValueError(f"must stay above 0, got {schedule}")
    return schedule


Temperature: TypeAlias = Annotated[Schedule, AfterValidator(_above_zero)]
"""The type of an option that divides logits: a number or a schedule, always above 0."""
