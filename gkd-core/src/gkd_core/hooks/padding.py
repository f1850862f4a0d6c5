"""Hooks that keep padding out of a model's values: its positions and its last token."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkd_core.contract.positions import first_position
from gkd_core.hooks.forward import last_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

NO_TOKEN = -1
"""The padding token of a model that has none: no id is equal to it."""

PADDING = "pad_token_id"
"""The name of the padding token in configurations."""

FOLLOWS = "_gkd_follows_mask"


def follow_mask(model: PreTrainedModel, pads_left: bool, reads_rows: bool) -> None:
    """Make a model's values follow the attention mask, wherever its rows are padded.

    Left to themselves, most architectures number positions from the first column, whether it is
    padding or not; and a decoder's head finds the last token by its id, which padding may share
    with the end of a text. A model reads the token that it reads if the row stands alone: the
    last one other than the padding token of its configuration.

    Args:
        model: The model.
        pads_left: Whether padding stands before the tokens. Without it, positions are right as
            they are.
        reads_rows: Whether the head classifies whole rows.
    """
    if hasattr(model, FOLLOWS):
        return
    setattr(model, FOLLOWS, True)
    body = model.base_model
    if pads_left and "position_ids" in inspect.signature(body.forward).parameters:
        number = partial(_number_tokens, first_position(model.config))
        body.register_forward_pre_hook(number, with_kwargs=True)
    head = _last_linear(model) if reads_rows and _looks_for_padding(model) else None
    if head is not None:
        if getattr(model.config, PADDING, None) is None:
            model.config.pad_token_id = NO_TOKEN  # without one, transformers takes single rows only
        reader = _LastToken(model.config.pad_token_id)
        model.register_forward_pre_hook(reader.find, with_kwargs=True)
        head.register_forward_hook(reader.spread)


def positions_of(mask: Tensor, first: int = 0) -> Tensor:
    """Return the position of each token in its row: int64, as the mask.

    Args:
        mask: 1 at tokens and 0 at padding, which has the position of the token before it.
        first: The position of a row's first token, and of padding before it.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0) + first


class _LastToken:
    """Gives a decoder's head the logits of each row's last token, wherever the head looks.

    Args:
        padding: The id that the model takes for padding.
    """

    def __init__(self, padding: int) -> None:
        self._padding = padding
        self._at: Tensor | None = None
        self._shape = torch.Size()

    def find(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        """Note where the last tokens are, before a pass."""
        ids, mask = _ids(args, inputs), inputs.get("attention_mask")
        self._at = None
        if ids is not None and ids.dim() == 2 and mask is not None and mask.shape == ids.shape:
            self._at, self._shape = last_tokens(mask, ids, self._padding), ids.shape

    def spread(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        """Put the logits of the last token at every position; a head of an encoder has no other."""
        at, self._at = self._at, None  # nothing of a model stays in memory after its pass
        if at is None or logits.shape[:-1] != self._shape:
            return None
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, at].unsqueeze(1).expand_as(logits)


def _number_tokens(
    first: int, body: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Number the positions of a pass by its mask, unless they are given."""
    ids, mask = _ids(args, inputs), inputs.get("attention_mask")
    if ids is None or mask is None or mask.dim() != 2 or inputs.get("position_ids") is not None:
        return None
    return args, {**inputs, "position_ids": positions_of(mask, first)[:, -ids.shape[1] :]}


def _ids(args: tuple[Any, ...], inputs: Mapping[str, Any]) -> Tensor | None:
    ids: Tensor | None = args[0] if args else inputs.get("input_ids")
    return ids


def _looks_for_padding(model: PreTrainedModel) -> bool:
    """Return whether a model finds the token that it classifies by the id of padding.

    Others may have logits at every position too, such as the mean of them in EuroBERT.
    """
    classes = (vars(each) for each in type(model).__mro__)  # a pass may call that of its base
    passes = (inspect.unwrap(each["forward"]) for each in classes if "forward" in each)
    return any(PADDING in one.__code__.co_names for one in passes)


def _last_linear(model: PreTrainedModel) -> nn.Module | None:
    """Return the last linear layer outside the body, if there is one."""
    body = set(model.base_model.modules())
    outside = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in body]
    return outside[-1] if outside else None
