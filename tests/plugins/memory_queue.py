"""Contrast with a queue: the teacher's vectors of earlier samples are negatives, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    View,
    all_samples,
    hookimpl,
)


class MemoryQueue(Method):
    """Identify the teacher's vector of the same sample among those of many samples.

    InfoNCE between the student's projected last [CLS] state and the teacher's. The negatives are
    the other samples of the micro-batch, and those of earlier ones, which are kept in a queue.
    """

    name = "memory-queue"
    paper = "Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699; He et al., CVPR 2020"
    kinds = (*Method.kinds, "multi-label", "multiple-choice")
    batch_coupled = True

    class Config(Method.Config):
        """Options of `memory-queue`."""

        size: int = Field(1024, ge=1, description="Number of vectors in the queue.")
        temperature: Temperature = Field(
            Schedule.parse(0.1), description="Divisor of the similarities; may be a schedule."
        )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.queue = torch.zeros(0)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the last state of the summarizing position."""
        return ["student.hidden[last]|cls", "teacher.hidden[last]|cls"]

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build the projection."""
        student, teacher = models.pair
        return {"map": nn.Linear(student.hidden_size, teacher.hidden_size)}

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Contrast the samples, and put the teacher's vectors of all ranks into the queue."""
        own = _unit(teacher.hidden.cls[-1])
        found = all_samples(own, batch)
        # The queue is the same on all ranks; rows that keep a rank in step stay out of it.
        candidates = torch.cat([found.values[found.counts], self.queue.to(own)])
        self.queue = candidates[: self.config.size]
        projected = _unit(self.modules["map"](student.hidden.cls[-1]))
        temperature = self.config.temperature.at(step)
        right = (projected * own).sum(-1) / temperature
        return {"queue": (projected @ candidates.T / temperature).logsumexp(-1) - right}

    def state_dict(self) -> dict[str, Any]:
        """Return the queue."""
        return {"queue": self.queue}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the queue."""
        self.queue = state["queue"]


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1, in fp32 or fp64."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return functional.normalize(vectors.to(dtype), dim=-1)


@hookimpl
def gkd_register_methods() -> list[type[Method]]:
    """Register the method."""
    return [MemoryQueue]
