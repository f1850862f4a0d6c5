"""`Estimate`: what a training step takes on each GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gkd_core.planning.memory_tracker import MemoryKind


@dataclass(frozen=True)
class Estimate:
    """What a simulated step of a stage takes.

    Attributes:
        stage: Name of the stage.
        memory: Bytes on each GPU by kind, at the moment when they are most.
        host: Bytes of host memory that each process needs for what waits there.
        flops: Floating-point operations of a step on each GPU: matrix products and attention.
        sent: Bytes that each GPU sends in a step, by collective operation.
        parameters: Number of weights by model.
        seconds: How long the simulation took.
    """

    stage: str
    memory: Mapping[MemoryKind, int]
    host: int
    flops: int
    sent: Mapping[str, int]
    parameters: Mapping[str, int]
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes on each GPU."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON can hold it."""
        return {**asdict(self), "peak": self.peak}
