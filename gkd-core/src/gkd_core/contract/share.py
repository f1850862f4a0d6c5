"""`Share`: the type of the option that divides a whole, or is a probability."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from gkd_core.contract.schedule import Schedule


def _from_0_to_1(schedule: Schedule) -> Schedule:
    """Reject a schedule that leaves [0, 1]; its values lie between its ends."""
    if not (0 <= schedule.start <= 1 and 0 <= schedule.end <= 1):
        raise ValueError(f"must stay from 0 to 1, got {schedule}")
    return schedule


Share: TypeAlias = Annotated[Schedule, AfterValidator(_from_0_to_1)]
"""The type of an option that is a share or a probability: a number or a schedule, from 0 to 1."""
