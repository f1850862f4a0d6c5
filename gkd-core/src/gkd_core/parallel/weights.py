"""Whole weights of models that may be divided over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from gkd_core.distributed.ranks import is_first
from gkd_core.distributed.shards import Sharding, Sliceable, sharding_of
from gkd_core.errors import ConfigError
from gkd_core.models.adapters import has_adapters


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter once (tied ones too) and every buffer in the state dict.

    Of a model with adapters, only those that are trained: the others are those of its base.
    """
    adapted = has_adapters(model)
    for name, weight in model.named_parameters():
        if weight.requires_grad or not adapted:
            yield name, weight
    kept = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model (`named_weights`), on the first rank; on the others, nothing.

    Divided weights are gathered one at a time. All ranks call this.
    """
    return _whole(dict(named_weights(model)), sharding_of(model))


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights under all of their names, as `state_dict` does.

    Tied weights stay one tensor.
    """
    return _whole(model.state_dict(keep_vars=True), sharding_of(model))


def load_whole(model: nn.Module, tensors: Mapping[str, Sliceable]) -> None:
    """Copy whole weights into a model; each rank reads its shards. All ranks call this.

    Raises:
        ConfigError: A weight is missing, or has another shape.
    """
    sharding = sharding_of(model)
    for name, weight in named_weights(model):
        stored = tensors.get(name)
        if stored is None:
            raise ConfigError(f"the weight {name} is missing")
        with gathered(weight), torch.no_grad():
            if sharding is None:
                _copy(name, weight, stored[...])
            else:
                sharding.read(name, stored, weight)


def _copy(name: str, weight: Tensor, value: Tensor) -> None:
    if value.shape != weight.shape:  # it may be one that would be broadcast
        raise ConfigError(
            f"the weight {name} has the shape {tuple(value.shape)}, not {tuple(weight.shape)}"
        )
    weight.copy_(value)


def is_partitioned(weight: Tensor) -> bool:
    """Return whether ZeRO-3 has partitioned a weight over the ranks."""
    return hasattr(weight, "ds_id")


def gathered(weight: Tensor) -> AbstractContextManager[None]:
    """Return a context in which a weight is whole; changes by the first rank are kept."""
    if not is_partitioned(weight):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([weight], 0)
    return context


def _whole(weights: Mapping[str, Tensor], sharding: Sharding | None) -> dict[str, Tensor]:
    found: dict[int, Tensor | None] = {}
    for name, weight in weights.items():
        if id(weight) not in found:
            with gathered(weight):
                found[id(weight)] = _join(name, weight, sharding)
    named = {name: found[id(weight)] for name, weight in weights.items()}
    return {name: weight for name, weight in named.items() if weight is not None}


def _join(name: str, weight: Tensor, sharding: Sharding | None) -> Tensor | None:
    """Return a weight on the first rank; a divided one is moved to the CPU, which has room."""
    own = weight.detach()
    whole = own if sharding is None else sharding.gather(name, own)
    if whole is None or not is_first():
        return None
    divided = sharding is not None or is_partitioned(weight)
    return whole.cpu() if divided else whole
