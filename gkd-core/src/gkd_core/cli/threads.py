"""How long threads of PyTorch wait for each other before they give up their core."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"

ROUNDS = "10000"
"""Rounds of a waiting loop, some microseconds. The default of OpenMP is hours: on a machine that
runs something else, threads then occupy the cores that the others need to arrive."""


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have waiting threads give up their core soon, unless the user says how they wait.

    It must be called before PyTorch is imported, and holds for child processes as well.

    Args:
        environment: The environment of this process.
    """
    if POLICY not in environment:
        environment.setdefault(SPIN, ROUNDS)
