"""Models on the meta device: their modules and the shapes of their weights, without the weights."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from gkd_core.errors import ConfigError
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
    """Return a new model on the meta device.

    Args:
        kind: The kind of task.
        config: The model's configuration.
        trust_remote_code: Whether to run code that comes with the configuration.
        dtype: Type of the weights.

    Raises:
        ConfigError: The settings contradict each other.
    """
    try:
        with torch.device("meta"), quiet():
            built: PreTrainedModel = kind.auto.from_config(
                copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{config.model_type} with {config.num_hidden_layers} blocks cannot be built of its "
            f"configuration: {str(error) or type(error).__name__}. If it is the student's, set "
            "what follows the number of blocks under `student.config`"
        ) from error
    narrow(built)
    return built


def shape_model(
    kind: TaskKind, config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedModel:
    """Return a model on the meta device to look at: others look at the same one.

    Args:
        kind: The kind of task.
        config: The model's configuration.
        trust_remote_code: Whether to run code that comes with the configuration.
    """
    text = config.to_json_string()
    return _built(_Shape(kind, type(config), text, trust_remote_code, config))


@dataclass(frozen=True)
class _Shape:
    """The key of a model's shape; `text` is its configuration as JSON."""

    kind: TaskKind
    family: type[PretrainedConfig]
    text: str
    trust_remote_code: bool
    config: PretrainedConfig = field(compare=False)


@functools.lru_cache(maxsize=8)
def _built(shape: _Shape) -> PreTrainedModel:
    return meta_model(shape.kind, shape.config, shape.trust_remote_code)
