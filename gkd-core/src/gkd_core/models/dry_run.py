"""A forward pass without weights, which shows whether a model's states can be read."""

from __future__ import annotations

import functools
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_core.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import PreTrainedModel

    from gkd_core.models.sites import Sites

ROWS, TOKENS = 2, 6
"""Shape of the token ids."""

Shape = tuple[int, ...]


def hidden_obstacle(sites: Sites) -> str | None:
    """Return the obstacle to reading the states after a block; None if there is none.

    Args:
        sites: The sites of a model on the meta device.
    """
    name = type(sites.model).__name__
    shapes = _shapes(sites.model.base_model, sites.blocks[0])
    if shapes is None or (shapes and shapes[0][:2] == (ROWS, TOKENS)):
        return None
    if not shapes:
        return f"{name} does not call its blocks as modules, so that their outputs are not seen"
    return (
        f"the blocks of {name} give a tensor of shape {list(shapes[0])} for {ROWS} rows of "
        f"{TOKENS} tokens"
    )


def pooled_obstacle(sites: Sites) -> str | None:
    """Return the obstacle to reading the vector that a head classifies; None if there is none.

    Args:
        sites: The sites of a model on the meta device.
    """
    if sites.classifier is None or sites.causal:
        return None
    shapes = _shapes(sites.model, sites.classifier, of_input=True)
    if shapes is None or (shapes and len(shapes[0]) == 2):
        return None
    return f"the head of {type(sites.model).__name__} classifies more than one vector of a row"


@functools.lru_cache(maxsize=32)
def _shapes(
    model: PreTrainedModel, module: nn.Module, of_input: bool = False
) -> tuple[Shape, ...] | None:
    """Return the shapes of what a module is given, or returns, in a pass of a model.

    Returns:
        One for each call; None if the model does not run on the meta device.
    """
    # Models look at the values of a mask or of tokens, but not at those of fake tensors. These are
    # slower.
    for mode in (nullcontext(), FakeTensorMode(allow_non_fake_inputs=True)):
        with suppress(Exception), mode:  # the code of any model: what it needs is not known
            return tuple(_seen(model, module, of_input))
    return None


def _seen(model: PreTrainedModel, module: nn.Module, of_input: bool) -> list[Shape]:
    found: list[Shape] = []

    def see(module: nn.Module, args: Any, output: Any = None) -> None:
        value = args if of_input else output
        value = value[0] if isinstance(value, (tuple, list)) else value
        found.append(tuple(getattr(value, "shape", ())))

    register: Callable[..., Any] = (
        module.register_forward_pre_hook if of_input else module.register_forward_hook
    )
    handle = register(see)
    try:
        with torch.no_grad(), quiet():
            model(torch.ones(ROWS, TOKENS, dtype=torch.long, device="meta"))
    finally:
        handle.remove()
    return found
