"""Rows of several documents: what a model is given, and which models keep them apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = "position_ids"
"""The input that says where a token is in its document; only packed batches have it."""

APART = {"full_attention", "sliding_attention", "chunked_attention"}
"""Types of layers in which no token sees another document."""


def without_mask(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return the inputs of a model: of a packed batch without the attention mask.

    Transformers finds the documents by their positions where there is no mask. Padding then is a
    document of its own.
    """
    if POSITIONS not in inputs:
        return inputs
    return {**inputs, "attention_mask": None}


def packing_obstacle(model: PreTrainedModel) -> str:
    """Return the reason that a model cannot keep the documents of a row apart; empty if it can."""
    forward: Any = inspect.unwrap(type(model.base_model).forward)
    if POSITIONS not in inspect.signature(forward).parameters:
        return "it takes no position_ids"
    masks = {"create_causal_mask", "create_masks_for_generate"} & {*forward.__code__.co_names}
    if not masks:
        return "its attention mask does not follow position_ids"
    types = set(getattr(model.config, "layer_types", None) or ()) - APART
    return f"it has layers of type {', '.join(sorted(types))}" if types else ""
