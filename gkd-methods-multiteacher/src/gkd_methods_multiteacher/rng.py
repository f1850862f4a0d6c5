"""Counter-based random numbers that do not depend on ranks or micro-batches.

A sample gets the same number on every rank and in every micro-batch, and a resumed run draws the
same numbers as an uninterrupted one. The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA
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
"""Bits of the mantissa of a double."""


def uniform(step: Step, teacher: int, rows: Tensor) -> Tensor:
    """Return a random number in [0, 1) for each row, given the step and teacher.

    Args:
        step: The training step; its generator's seed is used.
        teacher: Index of the teacher.
        rows: Identifiers of the samples, int64 `[B]`.
    """
    state = torch.full_like(rows, step.generator.initial_seed())
    for part in (torch.full_like(rows, step.index), torch.full_like(rows, teacher), rows):
        state = _mix(state + GAMMA * (part + 1))
    drawn: Tensor = _shifted(state, 64 - BITS).double() / 2**BITS
    return drawn


def _mix(state: Tensor) -> Tensor:
    """Return SplitMix64's mixture of the bits of each number; the shifts are its own, too."""
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Return a logical right shift: zeros are filled in, as for unsigned numbers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
