"""Universal-KD: output-grounded intermediate layer distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    Method,
    MethodError,
    ModelInfo,
    Models,
    Schedule,
    Share,
    Step,
    Temperature,
    Term,
    View,
    hard_labels,
    soft_labels,
)
from gkd_methods_intermediate.alp_kd import attend_layers


class UniversalKD(Method):
    """Match the predictions of intermediate layers, weighted by attention.

    L = (1 - gamma) T^2 KL(softmax(z_t / T) || softmax(z_s / T))
    + gamma sum_j KL(softmax(v_j) || softmax(u_s^j)), v_j = sum_i a_ji u_t^i,
    a_j = softmax_i(u_s^j . u_t^i). u^l = W^l h^l is the prediction of a pseudo-classifier on the
    pooled state of block l, for all blocks except the last. The teacher's pseudo-classifiers learn
    the labels from its states; v is a constant target. Depths, widths and architectures may differ;
    language models are not supported.
    """

    name = "universal-kd"
    paper = (
        "Wu, Rezagholizadeh, Ghaddar, Haidar, Ghodsi, EMNLP 2021, "
        "doi:10.18653/v1/2021.emnlp-main.603"
    )
    needs_labels = True

    class Config(Method.Config):
        """Options of `universal-kd`."""

        gamma: Share = Field(
            Schedule.parse(0.5),
            description="Weight of the intermediate layers; that of the soft labels is 1 - gamma. "
            "May be a schedule.",
        )
        temperature: Temperature = Field(
            Schedule.parse(1.0),
            description="T of the soft labels; for intermediate layers it is 1. May be a schedule.",
        )
        pooling: Literal["cls", "mean"] = Field(
            "cls",
            description="Input of a pseudo-classifier: the summary position, or the mean over the "
            "non-padding positions.",
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject language models and models without intermediate layers."""
        for model in models.pair:
            if model.is_lm:
                raise MethodError(
                    "universal-kd has a classifier per layer, each of which would be as large as "
                    "the vocabulary in language modeling. Use it for classification or "
                    "regression"
                )
            if model.layers < 2:
                raise MethodError(
                    f"universal-kd compares the layers below the last, but '{model.name}' has one "
                    "block. Use a model with at least 2 blocks (--student-layers), or use soft"
                )

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build a pseudo-classifier for every block except the last, in both models."""
        sides = zip(("student", "teacher"), models.pair, strict=True)
        return {side: _classifiers(model, models.student.labels) for side, model in sides}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the pooled states of all blocks except the last, and the logits."""
        for side, model in zip(("student", "teacher"), models.pair, strict=True):
            yield f"{side}.logits"
            for layer in range(1, model.layers):
                yield f"{side}.hidden[{layer}]|{self.config.pooling}"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions of the models and those of the pseudo-classifiers."""
        over, labels = batch.targets, batch.require_labels()
        gamma = self.config.gamma.at(step)
        temperature = self.config.temperature.at(step)
        learned, known = (
            self._predictions("student", student),
            self._predictions("teacher", teacher),
        )
        # Detached, so that the teacher's pseudo-classifiers learn from the labels alone: otherwise
        # all predictions could collapse to the same constant.
        targets = attend_layers(torch.stack(learned, 1), torch.stack(known, 1)).detach().unbind(1)
        soft = soft_labels(student.prediction, teacher.prediction, over, temperature)
        pairs = zip(learned, targets, strict=True)
        intermediate = Term.sum([soft_labels(u, v, over, 1.0) for u, v in pairs])
        pseudo = Term.sum([hard_labels(u, labels, over) for u in known])
        return {
            "soft": (1 - gamma) * soft,
            "intermediate": gamma * intermediate,
            "pseudo-classifiers": (1 / len(known)) * pseudo,
        }

    def _predictions(self, side: str, view: View) -> list[Tensor]:
        """Return the predictions of a model's pseudo-classifiers, `[B, C]` each."""
        states = view.hidden.cls if self.config.pooling == "cls" else view.hidden.mean
        pairs = zip(self.modules[side].children(), states.layers, strict=True)
        return [classifier(states[layer]) for classifier, layer in pairs]


def _classifiers(model: ModelInfo, classes: int) -> nn.ModuleList:
    layers = range(1, model.layers)
    return nn.ModuleList(nn.Linear(model.hidden_size, classes, bias=False) for _ in layers)
