"""LRC-BERT: latent-representation contrastive knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.api import (
    Add,
    Batch,
    LayerMap,
    Method,
    MethodError,
    Models,
    Operation,
    OperationContext,
    Pass,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    all_samples,
    hard_labels,
    layer_pairs,
    soft_labels,
)


class LRCBERT(Method):
    """Contrast each sample's teacher states with other samples', under a perturbed embedding.

    L = alpha sum_l C_l + beta T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + gamma CE(y, z_s), with
    the contrast C (COS-NCE) of sample i, C(i) = (1 / 2K) sum_(j != i) (2 - (G_ij - G_ii)) + G_ii.
    G_ij = 1 - cos(H_s,i W, H_t,j), averaged over the positions that both samples have; the K other
    samples of the micro-batch are the negatives. The student runs twice: the loss comes from the
    second pass, in which the embedding e is replaced by e + g / |g|, where g is the gradient of the
    first pass's L.
    """

    name = "lrc-bert"
    paper = "Fu, Zhou, Yang, Tang, Liu, Liu, Li, AAAI 2021, arXiv:2012.07335"
    needs_labels = True
    batch_coupled = True
    min_samples = 2

    class Config(Method.Config):
        """Options of `lrc-bert`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs.",
        )
        perturbation: Literal["sample", "token", "none"] = Field(
            "sample",
            description="How the gradient added to the embedding is normalized to length 1: over "
            "all positions of a `sample`, or per `token`; `none`: no perturbation, a single pass.",
        )
        alpha: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the contrast; may be a schedule."
        )
        beta: Schedule = Field(
            Schedule.parse(1.0),
            description="Weight of the soft labels; may be a schedule. 0 in the paper's stage 1.",
        )
        gamma: Schedule = Field(
            Schedule.parse(3.0),
            description="Weight of the labels; may be a schedule. 0 in the paper's stage 1.",
        )
        temperature: Temperature = Field(
            Schedule.parse(1.1), description="T of the soft labels; may be a schedule."
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject layers that do not exist."""
        self._pairs(models)

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build W, which all layers share."""
        student, teacher = models.pair
        return {"projection": nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)}

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Return the perturbed pass, from which the loss is computed."""
        return [Pass("perturbed")] if self._perturbs else []

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Move the embedding along the gradient of the first pass."""
        return [Add("student@perturbed.embedding", self._direction)] if self._perturbs else []

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the matched layers in every pass, and the logits if they have a weight."""
        runs = ("main", "perturbed") if self._perturbs else ("main",)
        for learned, known in self._pairs(models):
            yield from (f"student@{run}.hidden[{learned}]" for run in runs)
            yield f"teacher.hidden[{known}]"
        if self.config.beta.is_ever_nonzero or self.config.gamma.is_ever_nonzero:
            yield from (f"student@{run}.logits" for run in runs)
        if self.config.beta.is_ever_nonzero:
            yield "teacher.logits"
        if self._perturbs:
            yield "student.embedding"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Return the terms of the perturbed pass, or of the only one."""
        counting = student.at("perturbed") if self._perturbs else student
        return self._terms(counting, teacher, batch, step)

    def _pairs(self, models: Models) -> Sequence[tuple[int, int]]:
        """Return the pairs of layers to compare."""
        student, teacher = models.pair
        return layer_pairs(self.config.layers, student.layers, teacher.layers)

    @property
    def _perturbs(self) -> bool:
        return self.config.perturbation != "none"

    def _direction(self, context: OperationContext) -> Tensor:
        """Return the gradient with respect to the embedding, `[B, S, D]`, scaled to length 1."""
        terms = self._terms(context.student, context.teacher, context.batch, context.step)
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        gradient = context.gradient(total, context.student.embedding)
        over = (1, 2) if self.config.perturbation == "sample" else (2,)
        length: Tensor = torch.linalg.vector_norm(gradient, dim=over, keepdim=True)
        # Clamped, so that a zero gradient gives a zero direction and not NaN.
        return gradient / length.clamp(min=torch.finfo(length.dtype).tiny)

    def _terms(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Return the terms of one pass of the student."""
        config = self.config
        contrast = self._contrast(student, teacher, batch)
        terms = {"contrast": config.alpha.at(step) * contrast}
        if config.beta.is_ever_nonzero:
            temperature = config.temperature.at(step)
            soft = soft_labels(student.prediction, teacher.prediction, batch.targets, temperature)
            terms["soft"] = config.beta.at(step) * soft
        if config.gamma.is_ever_nonzero:
            hard = hard_labels(student.prediction, batch.require_labels(), batch.targets)
            terms["hard"] = config.gamma.at(step) * hard
        return terms

    def _contrast(self, student: View, teacher: View, batch: Batch) -> Term:
        """Sum COS-NCE over the matched layers."""
        pairs = self._pairs(Models(student.model, teacher.model))
        project = self.modules["projection"]
        # Only the teacher's states come from other ranks: a sample's loss has no gradient with
        # respect to other samples.
        masks = all_samples(batch.mask.to(torch.uint8), batch)
        if masks.number == 1:
            raise MethodError(
                "lrc-bert contrasts a sample with the others of its micro-batch, but a "
                "micro-batch has only one row. Raise training.batch_size or lower "
                "training.accumulation; if it is only the remainder of an epoch, set "
                "task.rows to one row less"
            )
        values = []
        for s, t in pairs:
            known = all_samples(teacher.hidden[t], batch).values
            learned = project(student.hidden[s])
            distances = sample_distances(learned, known, batch.mask, masks.values.bool())
            values.append(cos_nce(distances, masks.counts, masks.own))
        return Term(torch.stack(values).sum(0), batch.samples)


def cos_nce(distances: Tensor, counts: Tensor, own: slice) -> Tensor:
    """Return the contrast of each sample with the others: 0 at best, 4 at worst.

    Args:
        distances: From student sample i to teacher sample j, in [0, 2], `[B, N]`.
        counts: True for valid teacher samples, bool `[N]`.
        own: Where the student's B samples are among the teacher's N.

    Returns:
        `[B]`.
    """
    nearest = distances[:, own].diagonal()
    others = counts.repeat(len(distances), 1)
    others[:, own].fill_diagonal_(False)
    negatives = others.sum(1)
    gaps = (others * (distances - nearest.unsqueeze(1))).sum(1)
    return 1 - gaps / (2 * negatives) + nearest


def sample_distances(
    student: Tensor, teacher: Tensor, student_mask: Tensor, teacher_mask: Tensor
) -> Tensor:
    """Return 1 - cos between each student and teacher sample, averaged over positions.

    Args:
        student: `[B, S, D]`.
        teacher: `[N, S, D]`, constant.
        student_mask: True at non-padding positions, bool `[B, S]`.
        teacher_mask: Likewise, `[N, S]`; two samples are compared where both have a token.

    Returns:
        `[B, N]`, fp32, or fp64 if the inputs are.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    learned, known = (
        functional.normalize(x.to(dtype), dim=-1).masked_fill(~mask.unsqueeze(-1), 0).flatten(1)
        for x, mask in ((student, student_mask), (teacher, teacher_mask))
    )
    with torch.autocast(student.device.type, enabled=False):
        shared = (student_mask.to(dtype) @ teacher_mask.to(dtype).T).clamp(min=1)
        return 1 - learned @ known.T / shared
