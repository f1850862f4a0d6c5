"""Structural losses between points: tokens or phrases of a text, or samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_core.api import (
    Batch,
    Items,
    Relation,
    RelationBlock,
    all_samples,
    angles,
    relation_mse,
    self_relation,
)


@dataclass(frozen=True)
class Phrases:
    """The phrases of the texts of a batch; P is the largest number of phrases in a text.

    Attributes:
        share: Weight of each position in the mean of a phrase, `[B, P, S]`.
        items: The valid phrases, `[B, P]`.
    """

    share: Tensor
    items: Items

    @classmethod
    def of(cls, words: Tensor, size: int) -> Phrases:
        """Return phrases of `size` consecutive words; no phrase crosses a special token.

        Args:
            words: Word index of each token, -1 outside words, int64 `[B, S]`.
            size: Words per phrase; the last one before a special token may have fewer.
        """
        inside, before = words >= 0, words.roll(1, 1)
        before[:, 0] = -1
        first = torch.where(inside & (before < 0), words, 0).cummax(1).values
        begins = inside & (words != before) & ((words - first) % size == 0)
        number = (begins.cumsum(1) - 1).masked_fill(~inside, -1)
        places = torch.arange(max(int(number.max()) + 1, 1), device=words.device)
        members = (number.unsqueeze(1) == places.unsqueeze(-1)).to(torch.float32)
        sizes = members.sum(-1)
        share = members / sizes.clamp(min=1).unsqueeze(-1)
        return cls(share, Items.where("token", sizes > 0))

    def states(self, states: Tensor) -> Tensor:
        """Return the mean state of each phrase, fp32 or fp64 `[B, P, D]`, from `[B, S, D]`."""
        dtype = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            return self.share.to(dtype) @ states.to(dtype)


def point_structure(
    student: Tensor, teacher: Tensor, points: Items, heads: int, salient: int, neighbours: int
) -> Tensor:
    """Compare the points of each text by pairs and by triples.

    Pairs: the mean squared difference of scaled dot products, over points and heads. Triples: the
    Huber loss between the cosines of angles, over the most salient points and pairs of neighbors.

    Args:
        student: `[B, N, D]`.
        teacher: `[B, N, D']`, constant.
        points: The valid points, `[B, N]`.
        heads: Relation heads for pairs.
        salient: Vertices per text.
        neighbours: Neighbors per vertex.

    Returns:
        One loss per text, `[B]`.
    """
    mask = points.mask
    known = self_relation(teacher, heads, mask)
    pairs = relation_mse(self_relation(student, heads, mask), known, points).values
    around = salient_neighbours(known, mask, salient, neighbours)
    triples = angles(student, teacher, points, around=around).values
    number = mask.sum(1)
    vertices = number.clamp(max=salient)
    return pairs.sum(1) / number.clamp(min=1) + triples.sum(1) / vertices.clamp(min=1)


def salient_neighbours(relation: Relation, mask: Tensor, salient: int, neighbours: int) -> Tensor:
    """Return the neighbors of the most salient points of each text, as `around` for `angles`.

    The salience of a point is the softmax weight that it receives from all points, summed over the
    heads; its neighbors are the points to which it gives the most weight.

    Args:
        relation: Dot products of the points, `[B, A, N, N]`.
        mask: True for valid points, bool `[B, N]`.
        salient: Number of points with neighbors.
        neighbours: Neighbors of each of them.

    Returns:
        int64 `[B, N, min(neighbours, N)]`, -1 where there is no neighbor.
    """
    weights = _weights(relation) * mask.unsqueeze(-1)
    number = mask.shape[1]
    missing = ~mask.unsqueeze(1) | torch.eye(number, dtype=torch.bool, device=mask.device)
    most = weights.masked_fill(missing, -1.0).topk(min(neighbours, number), dim=-1)
    around = most.indices.masked_fill(most.values < 0, -1)
    received = weights.sum(1).masked_fill(~mask, -1.0)
    chosen = received.topk(min(salient, number), dim=-1).indices
    is_salient = torch.zeros_like(mask).scatter(1, chosen, True) & mask
    return around.masked_fill(~is_salient.unsqueeze(-1), -1)


def _weights(relation: Relation) -> Tensor:
    """Return the sum over the heads of the softmax of the dot products, fp32 `[B, N, N]`."""
    everything = slice(0, relation.shape[0]), slice(0, relation.shape[2])
    # One head at a time saves memory: all heads at once would be `[B, A, N, N]`.
    heads = (
        RelationBlock(everything[0], slice(h, h + 1), everything[1])
        for h in range(relation.shape[1])
    )
    total = relation.query.new_zeros(1)
    for head in heads:
        total = total + relation.part(head).probs().squeeze(1)
    return total


def sample_structure(student: Tensor, teacher: Tensor, batch: Batch, heads: int) -> Tensor:
    """Compare the angles between the samples of a batch, including those of other ranks.

    The loss is the Huber loss between cosines, averaged over pairs of other samples and over heads
    and summed over the layers.

    Args:
        student: One vector per sample and layer, `[B, L, D]`.
        teacher: `[B, L, D']`, constant.
        batch: The micro-batch.
        heads: Number of parts into which vectors are split.

    Returns:
        `[B]`.
    """
    learned, known = all_samples(student, batch), all_samples(teacher, batch)
    over = Items.where("sample", learned.counts.expand(heads * student.shape[1], -1))
    losses = angles(_split(learned.values, heads), _split(known.values, heads), over).values
    return losses[:, learned.own].sum(0) / heads


def _split(vectors: Tensor, heads: int) -> Tensor:
    """Return the parts of vectors `[N, L, D]` as `[L * heads, N, D / heads]`."""
    return vectors.reshape(len(vectors), vectors.shape[1] * heads, -1).transpose(0, 1)
