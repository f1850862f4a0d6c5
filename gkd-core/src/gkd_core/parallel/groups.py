"""Process groups: who shares a copy of which model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from gkd_core.errors import ConfigError
from gkd_core.parallel.layout import Layout


@dataclass(frozen=True)
class Groups:
    """The groups this process belongs to.

    Attributes:
        layout: The degrees they follow from.
        tensor: The ranks that share a copy of the student.
        data: The ranks that have the same shard of different copies of the student.
        teachers: The ranks that share a copy of a teacher, by its name.
    """

    layout: Layout
    tensor: ProcessGroup
    data: ProcessGroup
    teachers: Mapping[str, ProcessGroup]


def setup(layout: Layout) -> Groups:
    """Make the groups; all processes, which have met before, call it at the same time.

    The student's groups are those of megatron-core's `parallel_state`, which is what DeepSpeed
    takes as `mpu`. Models of equal degree share their groups.

    Raises:
        ConfigError: The number of processes is not the layout's, or megatron-core is missing.
    """
    from gkd_core.parallel.megatron import parallel_state

    if dist.get_world_size() != layout.world:
        raise ConfigError(
            f"the layout is for {layout.world} processes, but {dist.get_world_size()} were started"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor, create_gloo_process_groups=False
    )
    by_degree = {layout.tensor: parallel_state.get_tensor_model_parallel_group()}
    for degree in layout.teachers.values():
        if degree not in by_degree:
            by_degree[degree], _ = dist.new_subgroups(degree)  # type: ignore[no-untyped-call]
    return Groups(
        layout=layout,
        tensor=by_degree[layout.tensor],
        data=parallel_state.get_data_parallel_group(),
        teachers={name: by_degree[degree] for name, degree in layout.teachers.items()},
    )


def teardown() -> None:
    """Forget the groups; the processes stay connected."""
    from gkd_core.parallel.megatron import parallel_state

    parallel_state.destroy_model_parallel()


class ModelParallelUnit:
    """The student's groups by the names under which DeepSpeed asks its `mpu` for them.

    megatron-core's `parallel_state` has dropped those that speak of a model-parallel group.
    """

    def __init__(self, groups: Groups) -> None:
        self._tensor = groups.tensor
        self._data = groups.data

    def get_model_parallel_group(self) -> ProcessGroup:
        """Return the ranks that share a copy of the student."""
        return self._tensor

    def get_model_parallel_world_size(self) -> int:
        """Return their number."""
        return self._tensor.size()

    def get_model_parallel_rank(self) -> int:
        """Return this process's place among them."""
        return self._tensor.rank()

    def get_data_parallel_group(self) -> ProcessGroup:
        """Return the ranks that have the same shard of different copies."""
        return self._data

    def get_data_parallel_world_size(self) -> int:
        """Return their number."""
        return self._data.size()

    def get_data_parallel_rank(self) -> int:
        """Return this process's place among them."""
        return self._data.rank()

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Return their numbers among all processes."""
        return dist.get_process_group_ranks(self._data)
