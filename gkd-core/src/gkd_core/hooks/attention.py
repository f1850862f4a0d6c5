"""Capture of what goes into attention, without eager attention.

transformers looks attention functions up by name. The one registered here tells a listener what
the attention modules it listens to receive and return, and is stock scaled-dot-product attention
otherwise. Scores and probabilities are computed from the captured queries and keys, outside the
forward pass, for the layers that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "gkd_sdpa"


@dataclass(frozen=True)
class AttentionInputs:
    """What the scores of one layer follow from.

    Attributes:
        query: `[B, A, S, Dh]`, after rotary embedding.
        key: `[B, A_kv, S, Dh]`, after rotary embedding.
        mask: Bool (True where a query may look) or additive, broadcastable to `[B, A, S, S]`; None
            if nothing is masked but, under `causal`, the future.
        causal: Whether a missing mask means a causal one.
        scale: Factor of the dot products.
        bias: Position bias added to them, broadcastable to `[B, A, S, S]`, or None.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    bias: Tensor | None = None

    def scores(self) -> Tensor:
        """Return the scaled dot products, fp32 `[B, A, S, S]`; the least float where masked."""
        with torch.autocast(self.query.device.type, enabled=False):
            key: Tensor = repeat_kv(self.key, self.query.shape[1] // self.key.shape[1]).float()
            scores: Tensor = self.query.float() @ key.transpose(-1, -2) * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        least = torch.finfo(scores.dtype).min
        if self.mask is None:
            return scores.masked_fill(~self._past(), least) if self.causal else scores
        if self.mask.dtype == torch.bool:
            return scores.masked_fill(~self.mask, least)
        return (scores + self.mask).clamp(min=least)

    def probs(self) -> Tensor:
        """Return the attention distribution before dropout, fp32 `[B, A, S, S]`.

        A query that may look nowhere (padding) looks everywhere alike.
        """
        return self.scores().softmax(-1)

    def _past(self) -> Tensor:
        """True where a key is not after its query."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        return torch.ones(queries, keys, dtype=torch.bool, device=self.query.device).tril()


@dataclass(frozen=True)
class Listener:
    """Who is told about the attention of a module.

    Attributes:
        on_inputs: Called before attention is computed, also with the values `[B, A_kv, S, Dh]`.
        on_context: Called with the output `[B, S, A*Dh]`, before the output projection.
    """

    on_inputs: Callable[[AttentionInputs, Tensor], None]
    on_context: Callable[[Tensor], None]


_listeners: ContextVar[Mapping[nn.Module, Listener] | None] = ContextVar("listeners", default=None)


@contextmanager
def listening(listeners: Mapping[nn.Module, Listener]) -> Iterator[None]:
    """Tell listeners about the attention modules that are called within the context."""
    token = _listeners.set(listeners)
    try:
        yield
    finally:
        _listeners.reset(token)


def switch_attention(model: PreTrainedModel, name: str) -> None:
    """Make a model use the attention function that transformers knows as `name`."""
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)


def gkd_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute stock scaled-dot-product attention, and tell the module's listener about it.

    The signature is that of transformers' attention functions.
    """
    listener = (_listeners.get() or {}).get(module)
    if listener is not None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = causal and query.shape[2] > 1
        bias = options.get("position_bias")
        listener.on_inputs(AttentionInputs(query, key, attention_mask, causal, scale, bias), value)
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **options
    )
    if listener is not None:
        listener.on_context(output.flatten(2))
    return output, None


AttentionInterface.register(NAME, gkd_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)
