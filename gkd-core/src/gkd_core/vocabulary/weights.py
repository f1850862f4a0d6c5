"""Models whose tokens have other ids than they were trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

TOKEN_IDS = ("_token_id", "_token_ids")
"""Ends of the names of settings that name tokens."""


def named_tokens(config: PretrainedConfig | GenerationConfig) -> dict[str, list[int]]:
    """Return the settings that name tokens, and the ids that each names."""
    found = {}
    for name, value in config.to_dict().items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith(TOKEN_IDS) and ids and all(type(one) is int for one in ids):
            found[name] = [one for one in ids if one >= 0]
    return found


def renumber_settings(config: PretrainedConfig | GenerationConfig, kept: Sequence[int]) -> None:
    """Make a configuration name tokens by their new ids, in place.

    Args:
        config: The configuration of a model, or of the text that it writes.
        kept: The old id of each new one.
    """
    new = {old: number for number, old in enumerate(kept)}
    for name, ids in named_tokens(config).items():
        known = [new[old] for old in ids if old in new]
        is_list = isinstance(getattr(config, name), list)
        setattr(config, name, known if is_list else next(iter(known), None))


def renumber(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Make a model read and predict tokens by new ids, in place.

    The rows of its embedding and its head change places: those of the tokens that are kept come
    first, all others after them. It computes the same for a text as before.

    Args:
        model: The model.
        kept: The old id of each new one.
    """
    tensors = model.state_dict(keep_vars=True)
    # Tied weights once.
    found = {id(tensors[name]): (tensors[name], a) for name, a in token_axes(model).items()}
    with torch.no_grad():
        for tensor, axis in found.values():
            order = whole_order(kept, tensor.shape[axis]).to(tensor.device)
            tensor.data = tensor.data.index_select(axis, order)
    renumber_settings(model.config, kept)
    if model.can_generate() and model.generation_config is not None:
        renumber_settings(model.generation_config, kept)
        # What it writes is read by models that have no other tokens.
        rest = range(len(kept), model.get_input_embeddings().weight.shape[0])
        model.generation_config.suppress_tokens = [*rest] or None


def token_axes(model: PreTrainedModel) -> dict[str, int]:
    """Return the tensors with an entry for each token, by name, and on which axis they have it.

    They are the embedding, the head and its biases. The head of MobileBERT has a part that is
    stored the other way round.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if head is None else [embedding, head]
    own = {id(weight) for module in modules for weight in module.parameters()}
    rows, body = embedding.weight.shape[0], f"{model.base_model_prefix}."
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shape = tuple(tensor.shape)
        of_head = head is not None and not name.startswith(body)
        if id(tensor) in own or (of_head and shape == (rows,)):
            found[name] = 0
        elif of_head and shape[1:] == (rows,) and rows != model.config.hidden_size:
            found[name] = 1
    return found


def whole_order(kept: Sequence[int], rows: int) -> Tensor:
    """Return the old row of each new one: those that are kept first, then the others, `[rows]`."""
    first = torch.tensor(kept, dtype=torch.int64)
    rest = torch.ones(rows, dtype=torch.bool)
    rest[first] = False
    return torch.cat([first, rest.nonzero().squeeze(1)])


class RenumberedWeights(Mapping[str, Tensor]):
    """Stored weights of a model, by name, as `renumber` orders them.

    Args:
        weights: The weights.
        model: The model, which needs no weights.
        kept: The old id of each new one.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], model: PreTrainedModel, kept: Sequence[int]
    ) -> None:
        self._weights = weights
        self._axes = token_axes(model)
        self._kept = kept

    def __getitem__(self, name: str) -> Tensor:
        weight, axis = self._weights[name], self._axes.get(name)
        if axis is None:
            return weight
        return weight.index_select(axis, whole_order(self._kept, weight.shape[axis]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
