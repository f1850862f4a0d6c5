"""MGSKD: multi-granularity structural knowledge distillation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    MethodError,
    ModelInfo,
    Models,
    Schedule,
    Step,
    Term,
    View,
    layer_pairs,
)
from gkd_methods_intermediate.structure import Phrases, point_structure, sample_structure

Pairs = Sequence[tuple[int, int]]

HEADS = (64, 32, 16, 8, 4, 2, 1)
"""Candidate numbers of relation heads; the paper uses 64 of width 12."""

NARROWEST = 4
"""Minimum default width of a head: one-dimensional vectors form no angles."""


class MGSKD(Method):
    """Match the structure of tokens and phrases in lower layers, and of samples in upper ones.

    L = w_1 sum_(l >= M) sample_l + sum_(l < M) w_2 token_l + w_3 phrase_l, over the embedding and
    the matched layers. Tokens and phrases: the squared difference of scaled dot products in each
    relation head, plus the Huber loss between the angles at the vertices that the teacher finds
    most salient. Samples: the Huber loss between the angles of their mean states in each head. A
    phrase is a run of a few words. The recipe `mgskd` distills the predictions afterwards.
    """

    name = "mgskd"
    paper = "Liu, Tao, Feng, Zhao, ACL 2022, pp. 1001-1011"
    batch_coupled = True
    min_samples = 3

    class Config(Method.Config):
        """Options of `mgskd`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs. Embeddings are always matched.",
        )
        sample_from: NonNegativeInt | Literal["half"] = Field(
            "half",
            description="M: matched layers from here on compare samples, those below compare "
            "tokens and phrases. The embedding is 0; `half` is half the number of matched layers, "
            "not counting the embedding.",
        )
        heads: PositiveInt | None = Field(
            None,
            description="Relation heads into which states are split. Default: 64, halved until it "
            "divides both widths into parts of 4 or more.",
        )
        salient: PositiveInt = Field(
            20, description="k_1: tokens or phrases per text at which angles are compared."
        )
        neighbours: int = Field(
            20, ge=2, description="k_2: neighbors per vertex whose angles are compared."
        )
        phrase_words: PositiveInt = Field(2, description="Words in a phrase.")
        sample_weight: Schedule = Field(
            Schedule.parse(4.0), description="w_1: weight of the sample term; may be a schedule."
        )
        token_weight: Schedule = Field(
            Schedule.parse(1.0), description="w_2: weight of the token term; may be a schedule."
        )
        phrase_weight: Schedule = Field(
            Schedule.parse(1.0), description="w_3: weight of the phrase term; may be a schedule."
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject layers that do not exist and heads that do not divide the widths."""
        student, teacher = models.pair
        self._levels(models)
        heads = self.config.heads
        for model in (student, teacher):
            if heads is not None and model.hidden_size % heads:
                widths = student.hidden_size, teacher.hidden_size
                raise MethodError(
                    f"mgskd splits hidden states into {heads} relation heads, but '{model.name}' "
                    f"has hidden size {model.hidden_size}. Set mgskd.heads to a divisor of "
                    f"{math.gcd(*widths)}, or remove it"
                )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the states of lower layers and the mean states of upper layers."""
        lower, upper = self._levels(models)
        for pairs, reduce in ((lower, ""), (upper, "|mean")):
            for student, teacher in pairs:
                yield f"student.hidden[{student}]{reduce}"
                yield f"teacher.hidden[{teacher}]{reduce}"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare tokens and phrases in lower layers, and samples in upper layers."""
        lower, upper = self._levels(Models(student.model, teacher.model))
        config = self.config
        terms: dict[str, Tensor] = {}
        if lower:
            tokens, phrases = self._texts(lower, student, teacher, batch)
            terms["tokens"] = config.token_weight.at(step) * tokens
            terms["phrases"] = config.phrase_weight.at(step) * phrases
        if upper:
            samples = self._samples(upper, student, teacher, batch)
            terms["samples"] = config.sample_weight.at(step) * samples
        return {name: Term(values, batch.samples) for name, values in terms.items()}

    def _texts(
        self, layers: Pairs, student: View, teacher: View, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the token and phrase losses, summed over the layers, `[B]` each."""
        if batch.words is None:
            raise MethodError("mgskd builds phrases from words, but a batch has no word indices")
        phrases = Phrases.of(batch.words, self.config.phrase_words)
        limits = (
            self._heads(student.model, teacher.model),
            self.config.salient,
            self.config.neighbours,
        )
        states = [(student.hidden[s], teacher.hidden[t]) for s, t in layers]
        tokens = [point_structure(s, t, batch.tokens, *limits) for s, t in states]
        spans = [
            point_structure(phrases.states(s), phrases.states(t), phrases.items, *limits)
            for s, t in states
        ]
        return torch.stack(tokens).sum(0), torch.stack(spans).sum(0)

    def _samples(self, layers: Pairs, student: View, teacher: View, batch: Batch) -> Tensor:
        """Return the sample losses, summed over the layers, `[B]`."""
        learned = torch.stack([student.hidden.mean[s] for s, _ in layers], 1)
        known = torch.stack([teacher.hidden.mean[t] for _, t in layers], 1)
        return sample_structure(learned, known, batch, self._heads(student.model, teacher.model))

    def _heads(self, student: ModelInfo, teacher: ModelInfo) -> int:
        if self.config.heads is not None:
            return self.config.heads
        common = math.gcd(student.hidden_size, teacher.hidden_size)
        widest = min(student.hidden_size, teacher.hidden_size) // NARROWEST
        return next(h for h in HEADS if common % h == 0 and h <= max(widest, 1))

    def _levels(self, models: Models) -> tuple[Pairs, Pairs]:
        """Return the layer pairs for tokens and phrases, and those for samples."""
        student, teacher = models.pair
        matched = layer_pairs(self.config.layers, student.layers, teacher.layers)
        start = self.config.sample_from
        start = len(matched) // 2 if start == "half" else start
        pairs = [(0, 0), *matched]
        return pairs[:start], pairs[start:]
