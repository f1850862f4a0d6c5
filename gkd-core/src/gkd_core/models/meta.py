"""Models on the meta device: their modules and the shapes of their weights, without the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from gkd_core.models.quiet import quiet
from gkd_core.models.slicing.select import narrow

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from gkd_core.kinds.task_kind import TaskKind


def meta_model(
    kind: TaskKind,
    config: PretrainedConfig,
    trust_remote_code: bool,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return a model on the meta device.

    Args:
        kind: The kind of task.
        config: The model's configuration.
        trust_remote_code: Whether to run code that comes with the configuration.
        dtype: Type of the weights.
    """
    with torch.device("meta"), quiet():
        built: PreTrainedModel = kind.auto.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
        )
    narrow(built)
    return built
