"""DSKD: both models compared in the student's space and in the teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    LinearLogits,
    Logits,
    Method,
    Models,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    cross_entropy,
    kl,
)


class DSKD(Method):
    """Hidden states of each model, projected into the other's space, where its head predicts.

    Cross-model attention aligns the tokens: A = softmax(P_q [e_s; e_s'] . [e_t; e_t'] / sqrt(2 D)),
    with the embeddings of each token and of the next one; teachers with the student's tokens need
    none. L = CE(y, z_ts) + T^2 KL(z_ts || z_s) + T^2 KL(z_t || z_st): z_ts are the logits of the
    student's head, fixed, for the attended states of the teacher, z_st those of the teacher's head
    for the student's.
    """

    name = "dskd"
    paper = "Zhang, Zhang, Sun, Chen, Xu, EMNLP 2024, arXiv:2406.17328"
    kinds = ("causal-lm",)
    aligns = True
    applies_head = True

    class Config(Method.Config):
        """Options of `dskd`."""

        temperature: Temperature = Field(
            Schedule.parse(2.0),
            description="T: divisor of the logits of both divergences; may be a schedule.",
        )

    config: Config

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Return the projections between both spaces, and that of the queries of the attention."""
        student, teacher = (model.hidden_size for model in models.pair)
        return {
            "query": nn.Linear(2 * student, 2 * teacher),
            "to_student": nn.Linear(teacher, student),
            "to_teacher": nn.Linear(student, teacher),
        }

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the predictions of the teacher."""
        teacher = self.models.pair[1].name
        return {teacher: batch.view(teacher).targets.mask}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits, the states that they are made of, and the embeddings of both models."""
        sites = "logits", "hidden[last].normed", "embedding"
        return [f"{side}.{site}" for side in ("student", "teacher") for site in sites]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare both models in the student's space, then in the teacher's."""
        name = teacher.model.name
        view, temperature = batch.view(name), self.config.temperature.at(step)
        over, theirs = batch.targets, batch.items(name)
        known, learned = teacher.hidden.normed, student.hidden.normed
        if view is batch:
            to_student, to_teacher = self._to_student(known), self._to_teacher(learned)
        else:
            shown = _normalized(known) + _normalized(_following(teacher.embedding))
            scores = self._scores(student, teacher)
            to_student = _attend(scores, theirs.mask) @ self._to_student(shown)
            to_teacher = _attend(scores.mT, over.mask) @ self._to_teacher(learned)
        taught = _fixed_head(student.head(to_student))
        return {
            "projection": cross_entropy(taught, batch.require_labels(), over),
            "student-space": kl(student.prediction, _constant(taught), over, temperature),
            "teacher-space": kl(teacher.head(to_teacher), teacher.prediction, theirs, temperature),
        }

    def _to_student(self, states: Tensor) -> Tensor:
        return _project(self.modules["to_student"], states)

    def _to_teacher(self, states: Tensor) -> Tensor:
        return _project(self.modules["to_teacher"], states)

    def _scores(self, student: View, teacher: View) -> Tensor:
        """Return the similarity of the positions of both models, `[B, S, S']`."""
        own, other = (
            torch.cat([view.embedding.detach(), _following(view.embedding.detach())], dim=-1)
            for view in (student, teacher)
        )
        query = _project(self.modules["query"], own)
        key = _normalized(other)
        return query @ key.mT.to(query.dtype) / math.sqrt(key.shape[-1])


def _project(module: nn.Module, states: Tensor) -> Tensor:
    projected: Tensor = module(states.to(next(module.parameters()).dtype))
    return projected


def _following(embedding: Tensor) -> Tensor:
    """Return the embedding of the token after each position, `[B, S, D]`."""
    return embedding.roll(-1, dims=1)


def _normalized(vectors: Tensor) -> Tensor:
    """Return vectors divided by the root mean square of their elements, in fp32 or fp64."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    size = wide.square().mean(-1, keepdim=True).sqrt()
    return wide / size.clamp(min=torch.finfo(wide.dtype).tiny)


def _attend(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the attention over the positions of a mask; none where a row has none.

    Args:
        scores: `[B, S, K]`.
        mask: Bool `[B, K]`.
    """
    hidden = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
    return hidden.softmax(-1) * mask.unsqueeze(1)


def _fixed_head(logits: Logits) -> Logits:
    """Return the logits of a head that receives no gradient."""
    assert isinstance(logits, LinearLogits), "what a head returns"
    bias = None if logits.bias is None else logits.bias.detach()
    return replace(logits, weight=logits.weight.detach(), bias=bias)


def _constant(logits: Logits) -> Logits:
    """Return logits without gradient."""
    assert isinstance(logits, LinearLogits), "what a head returns"
    return replace(logits, hidden=logits.hidden.detach())
