"""Random numbers that depend on what they are for, not on who draws them.

A sample gets the same number on whatever rank and in whatever micro-batch it is, and a resumed run
draws what an uninterrupted one does. The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA
2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_core.api import Step

GAMMA = -7046029254386353131
FIRST = -4658895280553007687
SECOND = -7723592293110705685
"""Odd constants of SplitMix64, as signed 64-bit integers."""

BITS = 53


def uniform(step: Step, teacher: int, rows: Tensor) -> Tensor:
    """Return a number in [0, 1) for each row, of this step and teacher.

    Args:
        step: Where training stands; the seed is that of its generator.
        teacher: Number of the teacher.
        rows: int64 `[B]`, what tells the samples apart.
    """
    state = torch.full_like(rows, step.generator.initial_seed())
    for part in (torch.full_like(rows, step.index), torch.full_like(rows, teacher), rows):
        state = _mix(state + GAMMA * (part + 1))
    drawn: Tensor = _shifted(state, 64 - BITS).double() / 2**BITS
    return drawn


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, as for an unsigned number."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
