"""The state of methods in a checkpoint: tensors in a safetensors file, everything else as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gkd_core.errors import PluginError

TENSOR = "tensor of a gkd method"
"""Key of the JSON object that stands for a tensor; its value is the name of the tensor."""

NUMBER = "number of a gkd method"
"""Key of the JSON object that stands for NaN or an infinity, which JSON cannot hold."""


def take_tensors(state: Any, tensors: dict[str, Tensor], path: str = "methods") -> Any:
    """Return a state that JSON can hold: each tensor is replaced by its name.

    Args:
        state: Nested mappings, lists, tensors and JSON values.
        tensors: Receives copies of the tensors by name.
        path: Where the state is from, for the names.

    Raises:
        PluginError: A mapping has a key that is no string or stands for something else, or a value
            is of another type.
    """
    if isinstance(state, Tensor):
        name = f"{path} {len(tensors)}"
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = state.detach().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(state, Mapping):
        for key in state:
            _check_key(key, path)
        return {key: take_tensors(part, tensors, f"{path}.{key}") for key, part in state.items()}
    if isinstance(state, (list, tuple)):
        return [take_tensors(part, tensors, f"{path}.{n}") for n, part in enumerate(state)]
    if isinstance(state, float) and not math.isfinite(state):
        return {NUMBER: str(state)}
    if state is None or isinstance(state, (str, int, float)):
        return state
    raise PluginError(
        f"`state_dict` has a {type(state).__name__} ({path}); a state is made of tensors, numbers, "
        "strings, booleans, None, lists and mappings of these"
    )


def _check_key(key: object, path: str) -> None:
    if not isinstance(key, str):
        raise PluginError(
            f"`state_dict` has the key {key!r} ({path}), which would be read again as "
            f"{str(key)!r}: keys are strings"
        )
    if key in (TENSOR, NUMBER):
        raise PluginError(f"`state_dict` has the reserved key {key!r} ({path}); rename it")


def put_tensors(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that `take_tensors` was given; tuples have become lists."""
    if isinstance(state, Mapping):
        if TENSOR in state:
            return tensors[state[TENSOR]]
        if NUMBER in state:
            return float(state[NUMBER])
        return {key: put_tensors(part, tensors) for key, part in state.items()}
    if isinstance(state, list):
        return [put_tensors(part, tensors) for part in state]
    return state
