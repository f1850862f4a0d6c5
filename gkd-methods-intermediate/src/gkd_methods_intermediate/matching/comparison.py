"""The comparison of captured tensors: the loss of a `match` term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    Divergence,
    Items,
    Relation,
    Term,
    View,
    cosine,
    huber,
    js,
    kl,
    logits_mse,
    mse,
    normalized_mse,
    relation_kl,
    relation_mse,
    reverse_kl,
    self_relation,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)
from gkd_methods_intermediate.matching.knowledge import HEADED, Distance
from gkd_methods_intermediate.matching.layers import Pair
from gkd_methods_intermediate.matching.projection import project
from gkd_methods_intermediate.matching.shapes import head_count
from gkd_methods_intermediate.matching.term import MatchTerm

VectorDistance: TypeAlias = Callable[[Tensor, Tensor, Items], Term]
RelationLoss: TypeAlias = Callable[[Relation, Relation, Items], Term]


def normalized(student: Tensor, teacher: Tensor, over: Items) -> Term:
    """Return the squared distance of normalized vectors (PKD, Sun et al., 2019, Eq. 7).

    Args:
        student: `[*items, D]`.
        teacher: `[*items, D]`, constant.
        over: The items averaged over.
    """
    return normalized_mse(student, teacher, over) * student.shape[-1]


VECTOR_DISTANCES: Mapping[Distance, VectorDistance] = {
    "mse": mse,
    "huber": huber,
    "cosine": cosine,
    "normalized": normalized,
}
DIVERGENCE_LOSSES: Mapping[Distance, Divergence] = {
    "kl": kl,
    "reverse-kl": reverse_kl,
    "js": js,
    "total-variation": total_variation,
    "cross-entropy": soft_cross_entropy,
}
RELATION_LOSSES: Mapping[Distance, RelationLoss] = {"kl": relation_kl, "mse": relation_mse}
"""Per-head distances between scores that never materialize the scores of a whole batch."""

MEANS: tuple[Distance, ...] = ("mse", "huber")
"""Distances that average over the elements of a vector."""


@dataclass(frozen=True)
class TermComparison:
    """The comparison of one term on one micro-batch.

    Attributes:
        term: What to compare, and how.
        student: The student's captured tensors.
        teacher: The teacher's captured tensors.
        batch: The micro-batch.
        modules: The projections.
        temperature: T in this step.
    """

    term: MatchTerm
    student: View
    teacher: View
    batch: Batch
    modules: nn.ModuleDict
    temperature: float

    def of(self, pair: Pair) -> Term:
        """Return the distance of a pair of layers."""
        if self.term.site == "logits":
            return self._of_logits()
        if self.term.site == "attention":
            student, teacher = pair.student[0], pair.teacher[0]
            return self._of_products(
                self.student.attention[student], self.teacher.attention[teacher]
            )
        if self.term.relation == "tokens":
            return self._of_products(
                self._products(self.student, pair.student, self.teacher),
                self._products(self.teacher, pair.teacher, self.student),
            )
        return self._of_vectors(pair)

    @property
    def _over(self) -> Items:
        if self.term.site == "pooled" or self.term.relation == "channels":
            return self.batch.samples
        if self.term.positions in ("cls", "mean"):
            return self.batch.samples
        return self.batch.targets if self.term.positions == "targets" else self.batch.tokens

    def _of_logits(self) -> Term:
        prediction = self.student.prediction, self.teacher.prediction
        if self.term.distance == "mse":
            return logits_mse(*prediction, self._over)
        if self.term.is_divergence:
            divergence = DIVERGENCE_LOSSES[self.term.distance]
            return soft_labels(*prediction, self._over, self.temperature, divergence=divergence)
        distance = VECTOR_DISTANCES[self.term.distance]
        student, teacher = self.student.logits, self.teacher.logits
        # The two vocabularies may be padded to different sizes.
        width = min(student.shape[-1], teacher.shape[-1])
        return distance(student[..., :width], teacher[..., :width], self._over)

    def _of_vectors(self, pair: Pair) -> Term:
        distance = VECTOR_DISTANCES[self.term.distance]
        student, upper_student = self._projected(pair.student)
        teacher, upper_teacher = (_vectors(self.term, self.teacher, n) for n in pair.teacher)
        if self.term.relation == "none":
            return distance(student, teacher, self._over)
        mask = self.batch.mask
        learned, known = _gram(student, upper_student, mask), _gram(teacher, upper_teacher, mask)
        return distance(learned, known, self._over)

    def _projected(self, layers: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the student's vectors of two layers, projected to the teacher's width."""
        lower, upper = layers
        first = project(self.modules, self.term, lower, _vectors(self.term, self.student, lower))
        if upper == lower:
            return first, first
        return first, project(
            self.modules, self.term, upper, _vectors(self.term, self.student, upper)
        )

    def _products(self, view: View, layers: tuple[int, int], other: View) -> Relation:
        """Return the token products, over the head width or, for a divergence, its square root."""
        heads = head_count(self.term, view.model, other.model)
        first, second = (self._self_relation(view, layer, heads) for layer in layers)
        scale = first.scale if self.term.is_divergence else first.scale**2
        return replace(first, key=second.key, scale=scale)

    def _self_relation(self, view: View, layer: int, heads: int) -> Relation:
        if self.term.site in HEADED:
            relation: Relation = getattr(view, self.term.site).relation(
                layer, self.batch.mask, heads
            )
            return relation
        return self_relation(_vectors(self.term, view, layer), heads, self.batch.mask)

    def _of_products(self, student: Relation, teacher: Relation) -> Term:
        if self.term.distance in RELATION_LOSSES and self.term.heads not in ("mean", "sum"):
            return RELATION_LOSSES[self.term.distance](student, teacher, self._over)
        scores = student.scores(), teacher.scores()
        visible = _visible(scores[0]) & _visible(scores[1])
        learned, known = (self._over_heads(s.masked_fill(~visible, 0.0)) for s in scores)
        if self.term.is_divergence:
            return self._of_distributions(learned, known, visible)
        return self._of_rows(learned, known, visible)

    def _over_heads(self, scores: Tensor) -> Tensor:
        """Reduce scores `[B, A, S, S]` over the heads to `[B, 1, S, S]` if the term requires it."""
        if self.term.heads == "mean":
            return scores.mean(1, keepdim=True)
        return scores.sum(1, keepdim=True) if self.term.heads == "sum" else scores

    def _of_distributions(self, student: Tensor, teacher: Tensor, visible: Tensor) -> Term:
        """Average the row-wise divergence over the heads of scores `[B, A, S, S]`."""
        divergence = DIVERGENCE_LOSSES[self.term.distance]
        least = torch.finfo(student.dtype).min
        student, teacher = (s.masked_fill(~visible, least) for s in (student, teacher))
        heads = zip(student.unbind(1), teacher.unbind(1), strict=True)
        total = Term.sum(divergence(s, t, self._over, 1.0, True) for s, t in heads)
        return total * (1 / student.shape[1])

    def _of_rows(self, student: Tensor, teacher: Tensor, visible: Tensor) -> Term:
        """Compare each position's scores for the visible positions, in all heads at once."""
        student, teacher = (s.transpose(1, 2).flatten(2) for s in (student, teacher))
        term = VECTOR_DISTANCES[self.term.distance](student, teacher, self._over)
        if self.term.distance not in MEANS:
            return term
        # Masked scores are 0 in both models and must not count in the mean.
        seen = visible.sum(-1).squeeze(1).clamp(min=1).to(student.dtype)
        return term * (visible.shape[-1] / seen)


def _vectors(term: MatchTerm, view: View, layer: int) -> Tensor:
    """Return the vectors of a site with merged heads: `[B, S, W]`, or `[B, W]` per sample."""
    if term.site == "pooled":
        return view.pooled
    if term.site in HEADED:
        heads: Tensor = getattr(view, term.site)[layer]
        return heads.transpose(1, 2).flatten(2)
    site = view.hidden if term.site in ("embedding", "normed") else getattr(view, term.site)
    layers = getattr(site, term.positions) if term.positions in ("cls", "mean") else site
    vectors: Tensor = layers.normed if term.site == "normed" else layers[layer]
    return vectors


def _gram(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Return X^T Y / length over the non-padding positions, `[B, D * D]`."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    x, y = (v.to(dtype).masked_fill(~mask[..., None], 0.0) for v in (first, second))
    with torch.autocast(first.device.type, enabled=False):
        return (x.transpose(1, 2) @ y).flatten(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _visible(scores: Tensor) -> Tensor:
    """Return a mask of the scores `[B, A, S, S]` that are not masked out, bool `[B, 1, S, S]`."""
    return (scores > torch.finfo(scores.dtype).min / 2).all(1, keepdim=True)
