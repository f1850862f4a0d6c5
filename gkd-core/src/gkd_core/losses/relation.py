"""`Relation`: dot products between positions, such as attention scores, not computed yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_core.distributed.heads import DividedHeads


class RelationBlock(NamedTuple):
    """A block of rows of scores `[B, A, S, S]`.

    Attributes:
        samples: Slice of B.
        heads: Slice of A.
        queries: Slice of the first S.
    """

    samples: slice
    heads: slice
    queries: slice

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of the same rows of a tensor that is broadcastable to `[B, A, S, ...]`."""
        tensor = tensor[(None,) * (4 - tensor.dim())]
        parts = zip(self, tensor.shape[:3], strict=True)
        return tensor[tuple(part if size > 1 else slice(None) for part, size in parts)]


@dataclass(frozen=True)
class Relation:
    """Scaled dot products that are not computed yet.

    If the heads are divided over a tensor group, queries and keys (and a mask or bias that differs
    between heads) are those of this rank's heads.

    Attributes:
        query: `[B, A, S, Dh]`, after rotary embedding.
        key: `[B, A_kv, S, Dh]`, after rotary embedding; A is a multiple of A_kv, and consecutive
            query heads share a key head.
        mask: Bool (True where a query may attend) or additive, broadcastable to `[B, A, S, S]`;
            None if nothing is masked except, under `causal`, the future.
        causal: Whether a missing mask means a causal one.
        scale: Factor of the dot products.
        bias: Position bias added to them, broadcastable to `[B, A, S, S]`, or None.
        heads: How the heads are divided; None if all are on this rank.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    bias: Tensor | None = None
    heads: DividedHeads | None = None

    @classmethod
    def of_scores(cls, scores: Tensor) -> Relation:
        """Return the relation of known scores, of vectors without a width.

        Args:
            scores: `[B, A, S, S]`; -inf where masked.
        """
        mask = scores > -torch.inf
        vectors = scores.new_empty((*scores.shape[:3], 0))
        return cls(vectors, vectors, mask, False, 1.0, bias=scores.where(mask, 0))

    @property
    def shape(self) -> torch.Size:
        """The shape of the dot products of all heads."""
        samples, own, queries, _ = self.query.shape
        heads = own if self.heads is None else self.heads.queries
        return torch.Size((samples, heads, queries, self.key.shape[2]))

    def whole(self) -> Relation:
        """Return the relation with all heads; gathering vectors moves less than their products."""
        return self if self.heads is None else self._with(self.heads.gather, None)

    def match_heads(self, heads: DividedHeads | None) -> Relation:
        """Return the relation with its heads divided in a given way, or whole.

        Nothing is communicated if they are already divided that way.
        """
        if self.heads is not None and heads is not None and self.heads.group == heads.group:
            return self
        whole = self.whole()
        if heads is None:
            return whole
        queries, keys, ranks = whole.query.shape[1], whole.key.shape[1], heads.group.size()
        if keys % ranks and ranks % keys:
            own = whole.key.repeat_interleave(queries // keys, 1)
            whole, keys = replace(whole, key=own), queries
        kept = DividedHeads(heads.group, queries, keys)
        return whole._with(kept.shard, kept)

    def scores(self) -> Tensor:
        """Return the scaled dot products, fp32 `[B, A, S, S]`; the lowest float where masked."""
        if self.heads is not None:
            return self.whole().scores()
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        group = self.query.shape[1] // self.key.shape[1]
        key = self.key if group == 1 else self.key.repeat_interleave(group, dim=1)
        with torch.autocast(self.query.device.type, enabled=False):
            scores = self.query.to(dtype) * self.scale @ key.to(dtype).transpose(-1, -2)
        if self.bias is not None:
            scores = scores + self.bias
        # Finite, so that the softmax of a fully masked row is not NaN.
        least = torch.finfo(scores.dtype).min
        if self.mask is None:
            if not self.causal:
                return scores
            return scores.masked_fill_(~self._past(slice(0, self.shape[2])), least)
        if self.mask.dtype == torch.bool:
            return scores.masked_fill_(~self.mask, least)
        return (scores + self.mask).clamp(min=least)

    def probs(self) -> Tensor:
        """Return the attention distribution before dropout, fp32 `[B, A, S, S]`.

        A query that may attend to nothing (padding) attends uniformly to everything.
        """
        return self.scores().softmax(-1)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Relation:
        """Return the relation with `move` applied to each tensor."""
        mask, bias = (x if x is None else move(x) for x in (self.mask, self.bias))
        query, key = move(self.query), move(self.key)
        return replace(self, query=query, key=key, mask=mask, bias=bias)

    def part(self, block: RelationBlock) -> Relation:
        """Return a block of rows, as a relation in which every query head has its own keys."""
        mask = self.mask
        if mask is None and self.causal:
            mask = self._past(block.queries)
        elif mask is not None:
            mask = block.of(mask)
        return Relation(
            query=block.of(self.query),
            key=self.key[block.samples][:, self.key_heads(block.heads)],
            mask=mask,
            causal=False,
            scale=self.scale,
            bias=None if self.bias is None else block.of(self.bias),
        )

    def key_heads(self, heads: slice) -> Tensor:
        """Return the key head of each query head in a slice, int64."""
        group = self.query.shape[1] // self.key.shape[1]
        return torch.arange(heads.start, heads.stop, device=self.key.device) // group

    def _with(
        self, convert: Callable[[str, Tensor], Tensor], heads: DividedHeads | None
    ) -> Relation:
        """Return the relation with `DividedHeads.gather` or `.shard` applied to its tensors."""
        mask, bias = (
            x if x is None or x.dim() < 4 or x.shape[1] == 1 else convert("scores", x)
            for x in (self.mask, self.bias)
        )
        query, key = convert("query", self.query), convert("key", self.key)
        return replace(self, query=query, key=key, mask=mask, bias=bias, heads=heads)

    def _past(self, queries: slice) -> Tensor:
        """True where a key is not after its query, bool `[queries, S]`."""
        keys = torch.arange(self.shape[3], device=self.query.device)
        return keys <= keys[queries].unsqueeze(-1)


def self_relation(x: Tensor, heads: int, mask: Tensor) -> Relation:
    """Relate every position to every other by the dot products of its own vectors.

    The last dimension is split into heads of width W / heads, independent of the model's heads, and
    the dot products are divided by the square root of that width (MiniLMv2, Wang et al., 2021).

    Args:
        x: `[B, S, W]`.
        heads: Number of relation heads.
        mask: True at positions that are not padding, bool `[B, S]`.

    Raises:
        ValueError: W is not a multiple of `heads`.
    """
    width = x.shape[-1]
    if width % heads:
        raise ValueError(f"width {width} cannot be split into {heads} relation heads")
    split = x.view(*x.shape[:-1], heads, width // heads).transpose(1, 2)
    return Relation(split, split, mask[:, None, None, :], False, (width // heads) ** -0.5)
