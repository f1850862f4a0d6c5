"""`Estimate`: the memory, arithmetic and communication of a training step on each GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gkd_core.planning.memory_tracker import MemoryKind


@dataclass(frozen=True)
class Estimate:
    """The cost of a simulated step of a stage.

    Attributes:
        stage: Name of the stage.
        memory: Bytes on each GPU by kind, at the moment of peak use.
        host: Bytes of host memory that each process needs for what is offloaded.
        flops: Floating-point operations of a step on each GPU: matrix products and attention.
        probe_flops: Those of a measurement of the probes, which some steps have besides.
        sent: Bytes that each GPU sends in a step, by collective operation.
        parameters: Number of weights by model; of a student with adapters also of those trained.
        seconds: Duration of the simulation.
    """

    stage: str
    memory: Mapping[MemoryKind, int]
    host: int
    flops: int
    sent: Mapping[str, int]
    parameters: Mapping[str, int]
    seconds: float
    probe_flops: int = 0

    @property
    def peak(self) -> int:
        """Peak memory on each GPU, in bytes."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """Return the estimate in JSON-serializable form."""
        return {**asdict(self), "peak": self.peak}
