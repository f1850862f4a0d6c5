"""RAIL-KD: random intermediate layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.api import Batch, Items, Method, MethodError, Models, Step, Term, View


class RAILKD(Method):
    """Match intermediate layers with teacher layers that are redrawn in every epoch.

    L = sum_l alpha_l || n(P_t^l m_t^l) - n(P_s^l m_s^l) ||^2 over all student blocks l except the
    last. m is the mean of the hidden states, n scales to length 1, P are trained projections of
    both models, and m_t^1, m_t^2, ... belong to randomly chosen teacher blocks, except the last, in
    ascending order. `concatenated`: the same distance of the concatenated means, with one
    projection per model. The paper's objective weights `hard`, `soft` and this by a third each, the
    recipe `rail-kd`.
    """

    name = "rail-kd"
    paper = (
        "Haidar, Anchuri, Rezagholizadeh, Ghaddar, Langlais, Poupart, Findings of NAACL 2022, "
        "arXiv:2109.10164"
    )

    class Config(Method.Config):
        """Options of `rail-kd`."""

        variant: Literal["layer-wise", "concatenated"] = Field(
            "layer-wise",
            description="`layer-wise`: every pair of layers has its own distance (RAIL-KD l); "
            "`concatenated`: all layers have one (RAIL-KD c).",
        )
        projection_size: int = Field(
            128,
            ge=2,
            description="u: the width to which both models are projected; 2 or more, as a vector "
            "of length 1 has no other direction in 1.",
        )
        layer_weights: tuple[float, ...] = Field(
            (),
            description="alpha for `layer-wise`: a weight for each student layer except the last. "
            "Default: 1 each.",
        )
        draw_every: PositiveInt | Literal["epoch"] = Field(
            "epoch", description="When to draw new teacher layers: every epoch, or every N steps."
        )

        @model_validator(mode="after")
        def _weights_need_layers(self) -> RAILKD.Config:
            if self.layer_weights and self.variant == "concatenated":
                raise ValueError(
                    "`layer_weights` does not apply to variant 'concatenated', which has a single "
                    "distance; remove it"
                )
            return self

    config: Config

    def check(self, models: Models) -> None:
        """Reject models with too few layers and weights that do not match the layers."""
        student, teacher = models.pair
        if student.layers < 2:
            raise MethodError(
                "rail-kd has no layer to match: the student has one block, and rail-kd skips the "
                "last one. Use a student with at least 2 layers (--student-layers), or drop rail-kd"
            )
        if student.layers > teacher.layers:
            raise MethodError(
                f"rail-kd draws {student.layers - 1} teacher layers, one for each student block "
                f"below the last, but the teacher '{teacher.name}' has {teacher.layers - 1} below "
                f"its last. Use a student with at most {teacher.layers} layers (--student-layers)"
            )
        weights = self.config.layer_weights
        if weights and len(weights) != student.layers - 1:
            raise MethodError(
                f"rail-kd.layer_weights has {len(weights)} weights, but the student has "
                f"{student.layers - 1} blocks below its last; give one weight for each"
            )

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build the projections of both models.

        A teacher projection belongs to a position in the order of the drawn layers, not to a layer.
        """
        student, teacher = models.pair
        layers, size = student.layers - 1, self.config.projection_size
        joined = self.config.variant == "concatenated"
        count, factor = (1, layers) if joined else (layers, 1)
        return {
            f"{side} {number}": nn.Linear(factor * width, size, bias=False)
            for side, width in (
                ("student", student.hidden_size),
                ("teacher", teacher.hidden_size),
            )
            for number in range(1, count + 1)
        }

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the mean states of the student's blocks except the last, and of the drawn ones."""
        student, teacher = models.pair
        for layer in range(1, student.layers):
            yield f"student.hidden[{layer}]|mean"
        for layer in self._drawn(student.layers - 1, teacher.layers - 1, step):
            yield f"teacher.hidden[{layer}]|mean"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the projected means."""
        vectors = zip(self._vectors(student), self._vectors(teacher), strict=True)
        distances = [
            _distance(
                self.modules[f"student {number}"](learned),
                self.modules[f"teacher {number}"](known),
                batch.samples,
            )
            for number, (learned, known) in enumerate(vectors, start=1)
        ]
        weights = self.config.layer_weights or [1.0] * len(distances)
        weighted = [w * distance for w, distance in zip(weights, distances, strict=True)]
        return {"rail-kd": Term.sum(weighted)}

    def _vectors(self, view: View) -> list[Tensor]:
        """Return the vectors to project: each layer's mean `[B, D]`, or all concatenated."""
        means = [view.hidden.mean[layer] for layer in view.hidden.mean.layers]
        return [torch.cat(means, dim=-1)] if self.config.variant == "concatenated" else means

    def _drawn(self, count: int, last: int, step: Step) -> list[int]:
        """Return `count` of the layers 1 to `last`, ascending.

        They depend only on the seed and the epoch (or step), so that there is no state to keep
        between steps or to restore on resume.
        """
        every = self.config.draw_every
        draw = step.epoch if every == "epoch" else step.index // every
        generator = torch.Generator().manual_seed(step.generator.initial_seed() + draw)
        drawn = torch.randperm(last, generator=generator)[:count] + 1
        return sorted(drawn.tolist())


def _distance(student: Tensor, teacher: Tensor, over: Items) -> Term:
    """Return the squared distance of normalized vectors; both receive gradients."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    directions = (functional.normalize(v.to(dtype), dim=-1) for v in (student, teacher))
    learned, known = directions
    return Term((learned - known).square().sum(-1), over)
