"""The parts of megatron-core in use, imported without its warnings about optional packages."""

from __future__ import annotations

import os
import warnings

from gkd_core.errors import ConfigError

# Required by Megatron-core: kernels then start in launch order, so that communication overlaps with
# computation.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state
        from megatron.core.model_parallel_config import ModelParallelConfig
        from megatron.core.tensor_parallel.layers import (
            ColumnParallelLinear,
            RowParallelLinear,
            VocabParallelEmbedding,
            set_tensor_model_parallel_attributes,
        )
except ImportError as error:
    raise ConfigError(
        f"more than one process needs megatron-core, which cannot be imported ({error}); "
        "install it with `pip install 'gkd-core[parallel]'`"
    ) from error

__all__ = [
    "ColumnParallelLinear",
    "ModelParallelConfig",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "parallel_state",
    "set_tensor_model_parallel_attributes",
]
