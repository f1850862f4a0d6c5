"""ALP-KD: attention-based layer projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gkd_core.api import Batch, Method, Models, Step, Term, View, same_width


class ALPKD(Method):
    """Match every student layer with an attention-weighted mixture of all teacher layers.

    L = sum_j MSE(h_s^j, sum_i a_ji h_t^i) with a_j = softmax_i(h_s^j . h_t^i), over the student's
    blocks j and the teacher's blocks i; h is the [CLS] state. No teacher layer is skipped and no
    layer map is needed. Combine it with other terms: the paper's objective is a weighted sum with
    `hard` and `soft`, the recipe `alp-kd`. Student and teacher must have the same hidden size.
    """

    name = "alp-kd"
    paper = "Passban, Wu, Rezagholizadeh, Liu, AAAI 2021, arXiv:2012.14022"

    def check(self, models: Models) -> None:
        """Reject models with different hidden sizes."""
        same_width(
            models,
            self.name,
            f"Set student.hidden_size={models.pair[1].hidden_size}, or use universal-kd, which "
            "compares layers of any width",
        )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the [CLS] states of all blocks of both models."""
        for side, model in zip(("student", "teacher"), models.pair, strict=True):
            for layer in range(1, model.layers + 1):
                yield f"{side}.hidden[{layer}]|cls"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare each student layer with the mixture that it attends to."""
        learned, known = (_stacked(view) for view in (student, teacher))
        # Not `mse`, whose target is constant: here the target depends on the student as well.
        distances = (learned - attend_layers(learned, known)).square().mean(-1)
        return {"alp-kd": Term(distances.sum(1), batch.samples)}


def attend_layers(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mixture of teacher layers that each student layer attends to.

    The weights are the softmax of the unscaled dot products, computed in fp32, or fp64 if the
    inputs are. Gradients flow through the weights.

    Args:
        student: One vector per student layer, `[B, L_s, D]`.
        teacher: One vector per teacher layer, `[B, L_t, D]`.

    Returns:
        Mixtures, `[B, L_s, D]`.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        queries, keys = student.to(dtype), teacher.to(dtype)
        weights = (queries @ keys.transpose(1, 2)).softmax(-1)
        return weights @ keys


def _stacked(view: View) -> Tensor:
    """Return the [CLS] states of all blocks, `[B, L, D]`."""
    states = view.hidden.cls
    return torch.stack([states[layer] for layer in states.layers], dim=1)
