"""`Relation`: dot products between positions, such as attention scores, not computed yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv


@dataclass(frozen=True)
class Relation:
    """Scaled dot products that are not computed yet.

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
