"""Batches for teachers that are divided over more ranks than the student.

The ranks of such a teacher see different rows but must run together, so the teacher runs on the
rows of each in turn. A rank keeps the result of its own turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gkd_core.contract.batch import Batch
from gkd_core.distributed import messages
from gkd_core.distributed.groups import current, data_rank
from gkd_core.distributed.shards import sharding_of

PassInputs: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""Model inputs of a pass, by pass name."""


@dataclass(frozen=True)
class TeacherBatches:
    """The micro-batches seen by the ranks of a teacher's group.

    Attributes:
        batches: The micro-batches in rank order; ranks that share a student contribute one.
        own: Index of this rank's.
    """

    batches: Sequence[Batch]
    own: int = 0

    def of(self, teacher: nn.Module, student: nn.Module) -> range:
        """Return the indices of the batches that a teacher runs on."""
        count = max(1, degree(teacher) // degree(student))
        first = self.own // count * count
        return range(first, first + count)

    def each(self, make: Callable[[Batch], PassInputs]) -> Sequence[PassInputs]:
        """Return the inputs made from each micro-batch.

        Each is made by the rank that trains on it, which may communicate with ranks outside the
        group.
        """
        groups = current()
        if len(self.batches) == 1 or groups is None:
            return [make(batch) for batch in self.batches]
        batch = self.batches[self.own]
        own = _moved(make(batch), torch.device("cpu"))
        found = messages.gather(own, groups.widest)
        return [_moved(each, batch.rows.device) for each in found[:: groups.tensor.size()]]

    def to(self, device: torch.device) -> TeacherBatches:
        """Return the batches on `device`."""
        return TeacherBatches([batch.to(device) for batch in self.batches], self.own)


def _moved(inputs: PassInputs, device: torch.device) -> PassInputs:
    return {
        name: {key: value.to(device) for key, value in tensors.items()}
        for name, tensors in inputs.items()
    }


def gather_teacher_batches(batch: Batch) -> TeacherBatches:
    """Return the teacher batches of a step; all ranks call this.

    Args:
        batch: This rank's micro-batch, on the CPU.
    """
    groups = current()
    if groups is None or groups.widest.size() <= groups.tensor.size():
        return TeacherBatches([batch])
    batches = messages.gather(batch, groups.widest)
    different = batches[:: groups.tensor.size()]
    return TeacherBatches(different, data_rank() % len(different))


def degree(model: nn.Module) -> int:
    """Return the number of processes that share one copy of a model."""
    sharding = sharding_of(model)
    return 1 if sharding is None else sharding.group.size()
