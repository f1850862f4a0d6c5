"""CKD: contextual knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from gkd_core.api import (
    Batch,
    Items,
    LayerMap,
    Method,
    Models,
    Relation,
    Schedule,
    Step,
    Term,
    View,
    angles,
    layer_pairs,
    relation_kl,
    windows,
)


class CKD(Method):
    """Match how words relate to each other and how each word changes from layer to layer.

    L = w_1 WR_2 + w_2 WR_3 + w_3 LTR_2 + w_4 LTR_3. Word relations (WR) hold between the tokens of
    a layer, averaged over the embedding and all matched layers; layer-transforming relations (LTR)
    between the states of a token across these layers. For pairs (2) the loss is KL between softmax
    distributions of the cosines to all others; for triples (3) it is the squared difference between
    the cosines of the angles at a vertex. Triples of words lie within a window around the vertex.
    The recipe `ckd` adds soft and hard labels. Widths may differ.
    """

    name = "ckd"
    paper = "Park, Kim, Yang, EMNLP 2021, arXiv:2109.08359"

    class Config(Method.Config):
        """Options of `ckd`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs. Embeddings are always matched.",
        )
        window: int = Field(
            21,
            ge=3,
            description="Window for triples of words, in tokens, with the vertex in the middle; an "
            "odd number.",
        )
        word_pair_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of word pairs; may be a schedule."
        )
        word_triple_weight: Schedule = Field(
            Schedule.parse(10.0), description="Weight of word triples; may be a schedule."
        )
        layer_pair_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of layer pairs; may be a schedule."
        )
        layer_triple_weight: Schedule = Field(
            Schedule.parse(10.0), description="Weight of layer triples; may be a schedule."
        )

        @field_validator("window")
        @classmethod
        def _has_a_middle(cls, window: int) -> int:
            if window % 2 == 0:
                raise ValueError(f"a window of {window} tokens has no middle; use {window + 1}")
            return window

    config: Config

    def check(self, models: Models) -> None:
        """Reject layers that do not exist."""
        self._layers(models)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the embeddings and the hidden states of all matched layers."""
        for student, teacher in self._layers(models):
            yield f"student.hidden[{student}]"
            yield f"teacher.hidden[{teacher}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare relations of tokens within each layer and of layers within each token."""
        layers = self._layers(Models(student.model, teacher.model))
        pairs = [(student.hidden[s], teacher.hidden[t]) for s, t in layers]
        words = [word_relations(s, t, batch.tokens, self.config.window) for s, t in pairs]
        of_words = [_mean(terms) for terms in zip(*words, strict=True)]
        of_layers = layer_relations([s for s, _ in pairs], [t for _, t in pairs], batch.tokens)
        config = self.config
        weighted = {
            "word-pairs": (config.word_pair_weight, of_words[0]),
            "word-triples": (config.word_triple_weight, of_words[1]),
            "layer-pairs": (config.layer_pair_weight, of_layers[0]),
            "layer-triples": (config.layer_triple_weight, of_layers[1]),
        }
        return {name: w.at(step) * term for name, (w, term) in weighted.items()}

    def _layers(self, models: Models) -> Sequence[tuple[int, int]]:
        """Return the pairs of layers to compare, the embeddings first."""
        student, teacher = models.pair
        return [(0, 0), *layer_pairs(self.config.layers, student.layers, teacher.layers)]


def word_relations(
    student: Tensor, teacher: Tensor, tokens: Items, window: int
) -> tuple[Term, Term]:
    """Return the pair and triple terms of the words of a layer.

    Args:
        student: `[B, S, D]`.
        teacher: `[B, S, D']`, constant.
        tokens: The positions that are not padding, `[B, S]`.
        window: Window for triples in tokens, an odd number.
    """
    others = tokens.mask.unsqueeze(1) & _others(student)
    pairs = relation_kl(_cosines(student, others), _cosines(teacher, others), tokens)
    around = windows(student.shape[1], window, student.device)
    return pairs, 2 * angles(student, teacher, tokens, delta=2.0, around=around)


def layer_relations(
    student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Items
) -> tuple[Term, Term]:
    """Return the pair and triple terms of the layers of a token.

    Args:
        student: The states of each layer, `[B, S, D]`.
        teacher: The same number of states, `[B, S, D']`, constant.
        tokens: The positions that are not padding, `[B, S]`.
    """
    learned, known = (torch.stack(list(side), 2).flatten(0, 1) for side in (student, teacher))
    number = len(student)
    each = torch.arange(number, device=tokens.index.device)
    mask = tokens.mask.flatten().unsqueeze(1).expand(-1, number)
    states = Items("token", mask, (tokens.index.unsqueeze(1) * number + each).flatten())
    others = _others(learned)
    pairs = relation_kl(_cosines(learned, others), _cosines(known, others), states)
    triples = angles(learned, known, states, delta=2.0)
    shape = (*tokens.mask.shape, number)
    first, second = (Term(term.values.view(shape).sum(-1), tokens) for term in (pairs, triples))
    return 1 / number * first, 2 / number * second


def _cosines(x: Tensor, others: Tensor) -> Relation:
    """Return the cosines of vectors `[B, N, D]`, each to those marked in `others`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    directions = functional.normalize(x.to(dtype), dim=-1).unsqueeze(1)
    return Relation(directions, directions, others.unsqueeze(1), False, 1.0)


def _others(x: Tensor) -> Tensor:
    """Return a mask that is False on the diagonal only, bool `[1, N, N]`."""
    return ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device).unsqueeze(0)


def _mean(terms: Sequence[Term]) -> Term:
    return 1 / len(terms) * Term.sum(terms)
