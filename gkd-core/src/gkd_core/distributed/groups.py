"""Process groups: which ranks share a copy of which model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from gkd_core.distributed.layout import Layout
from gkd_core.errors import ConfigError

_current: Groups | None = None


@dataclass(frozen=True)
class Groups:
    """The groups this process belongs to.

    Attributes:
        layout: The degrees they are derived from.
        tensor: The ranks that share a copy of the student.
        data: The ranks that hold the same shard of different copies of the student.
        teachers: The ranks that share a copy of a teacher, by teacher name.
        copies: The ranks that hold the same shard of different copies of a teacher, by its name.
    """

    layout: Layout
    tensor: ProcessGroup
    data: ProcessGroup
    teachers: Mapping[str, ProcessGroup]
    copies: Mapping[str, ProcessGroup]

    @property
    def every(self) -> set[ProcessGroup]:
        """All of them, each once."""
        return {self.tensor, self.data, *self.teachers.values(), *self.copies.values()}

    @property
    def widest(self) -> ProcessGroup:
        """The largest group that shares a copy of a model."""
        return max([self.tensor, *self.teachers.values()], key=ProcessGroup.size)


def arrange(layout: Layout) -> Groups | None:
    """Make the groups of a layout current; if every model is whole, there are none.

    A collective call: all processes make it at the same time.

    Raises:
        ConfigError: The number of processes differs from the layout's, or megatron-core is missing.
    """
    if _current is not None and _current.layout == layout:
        return _current
    if _current is not None:
        teardown()
    return None if layout.is_whole else setup(layout)


def current() -> Groups | None:
    """Return the groups of the current stage; None if every model is whole."""
    return _current if dist.is_initialized() else None


def data_group() -> ProcessGroup | None:
    """Return the ranks that divide the rows of a batch with this one; None stands for all."""
    groups = current()
    return None if groups is None else groups.data


def data_size() -> int:
    """Return the number of shares that the rows of a batch are divided into."""
    return dist.get_world_size(data_group()) if dist.is_initialized() else 1


def data_rank() -> int:
    """Return the index of this process's share; equal on all ranks of a tensor group."""
    return dist.get_rank(data_group()) if dist.is_initialized() else 0


def is_first_of_copy() -> bool:
    """Return whether this process is the first of those that see the same rows."""
    groups = current()
    return groups is None or groups.tensor.rank() == 0


def setup(layout: Layout) -> Groups:
    """Create the groups; all processes of the initialized default group call it at the same time.

    The student's groups are those of megatron-core's `parallel_state`, which DeepSpeed can take as
    `mpu`. Models of equal degree share their groups.

    Raises:
        ConfigError: The number of processes differs from the layout's, or megatron-core is missing.
    """
    global _current
    from gkd_core.distributed.megatron import parallel_state

    if dist.get_world_size() != layout.world:
        raise ConfigError(
            f"the layout is for {layout.world} processes, but {dist.get_world_size()} were started"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor, create_gloo_process_groups=False
    )
    tensor = parallel_state.get_tensor_model_parallel_group()
    data = parallel_state.get_data_parallel_group()
    by_degree = {layout.tensor: (tensor, data)}
    for degree in layout.teachers.values():
        if degree not in by_degree:
            by_degree[degree] = _new_groups(layout.world, degree)
    _current = Groups(
        layout=layout,
        tensor=tensor,
        data=data,
        teachers={name: by_degree[degree][0] for name, degree in layout.teachers.items()},
        copies={name: by_degree[degree][1] for name, degree in layout.teachers.items()},
    )
    return _current


def teardown() -> None:
    """Destroy the model-parallel groups; the default process group stays."""
    global _current
    from gkd_core.distributed.megatron import parallel_state

    parallel_state.destroy_model_parallel()
    _current = None


def _new_groups(world: int, degree: int) -> tuple[ProcessGroup, ProcessGroup]:
    """Return the ranks that share a copy with this one, and those that hold the same shard."""
    shared, _ = dist.new_subgroups(degree)  # type: ignore[no-untyped-call]
    strided = [list(range(first, world, degree)) for first in range(degree)]
    same, _ = dist.new_subgroups_by_enumeration(strided)  # type: ignore[no-untyped-call]
    return shared, same


class ModelParallelUnit:
    """The student's groups under the names by which DeepSpeed queries its `mpu`.

    megatron-core's `parallel_state` no longer has the functions named after a model-parallel group.
    """

    def __init__(self, groups: Groups) -> None:
        self._tensor = groups.tensor
        self._data = groups.data

    def get_model_parallel_group(self) -> ProcessGroup:
        """Return the ranks that share a copy of the student."""
        return self._tensor

    def get_model_parallel_world_size(self) -> int:
        """Return the number of these ranks."""
        return self._tensor.size()

    def get_model_parallel_rank(self) -> int:
        """Return this process's rank among them."""
        return self._tensor.rank()

    def get_data_parallel_group(self) -> ProcessGroup:
        """Return the ranks that hold the same shard of different copies."""
        return self._data

    def get_data_parallel_world_size(self) -> int:
        """Return the number of these ranks."""
        return self._data.size()

    def get_data_parallel_rank(self) -> int:
        """Return this process's rank among them."""
        return self._data.rank()

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Return their global ranks."""
        return dist.get_process_group_ranks(self._data)
