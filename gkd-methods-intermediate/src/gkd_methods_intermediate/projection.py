"""A trained projection of the student's states to the teacher's width."""

from __future__ import annotations

from torch import nn

STD = 0.02
"""Standard deviation of the initial weights, as in BERT."""


def linear_projection(student: int, teacher: int) -> nn.Linear:
    """Return a projection with a bias, initialized as BERT's layers are.

    Args:
        student: Width of the student's states.
        teacher: Width of the teacher's.
    """
    linear = nn.Linear(student, teacher)
    nn.init.normal_(linear.weight, std=STD)
    nn.init.zeros_(linear.bias)
    return linear
