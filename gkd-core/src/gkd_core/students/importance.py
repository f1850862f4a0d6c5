"""The importance of each head and neuron: the gradient of the loss with respect to a mask.

Michel, Levy, Neubig, NeurIPS 2019, arXiv:1905.10650, section 4.1, for heads; Hou et al., NeurIPS
2020, arXiv:2004.04037, for neurons too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.forward import Change
from gkd_core.hooks.paths import Capture
from gkd_core.losses.soft_labels import hard_labels
from gkd_core.models.slicing.widths import Widths

NORM_EPS = 1e-17
"""Added to the norm of a layer's scores, which may all be 0."""


@dataclass(frozen=True)
class Importance:
    """Importance scores of heads and neurons; higher is more important.

    Attributes:
        heads: Scores of the key/value heads of each block, fp64 `[heads]`.
        neurons: Scores of the feed-forward neurons of each block, fp64 `[neurons]`.
    """

    heads: Sequence[Tensor]
    neurons: Sequence[Tensor]


def measure_importance(
    student: Extractor, batches: Iterable[Batch], device: torch.device
) -> Importance:
    """Measure how much the loss on the labels depends on each head and each neuron.

    A mask of ones multiplies the context of each head (of all query heads that share a key/value
    head) and each neuron after its activation. A score is the sum over the batches of the absolute
    gradient of the mean loss with respect to the mask; the scores of each block are divided by
    their L2 norm, separately for heads and neurons. There is no dropout and no training.

    Args:
        student: The model with its hooks, as a stage holds it; gradients must be enabled.
        batches: Labeled calibration rows; the scores depend on the batching.
        device: Device of the model.

    Returns:
        Scores `[heads]` and `[neurons]` of each block, for `Slicer.of`.

    Raises:
        MethodError: The attention or the feed-forward part of the architecture cannot be masked.
    """
    widths = Widths.read(student.model.config)
    totals = [torch.zeros(n, dtype=torch.float64) for n in widths.heads + widths.neurons]
    was_training = student.model.training
    student.model.eval()
    try:
        for batch in batches:
            if batch.counted:
                gradients = mask_gradients(student, batch.to(device), widths)
                for total, gradient in zip(totals, gradients, strict=True):
                    total += gradient.abs().double().cpu()
    finally:
        student.model.train(was_training)
    scores = [total / (total.norm() + NORM_EPS) for total in totals]
    layers = len(widths.heads)
    return Importance(scores[:layers], scores[layers:])


def mask_gradients(student: Extractor, batch: Batch, widths: Widths) -> Sequence[Tensor]:
    """Return the gradients of the mean loss with respect to masks: heads, then neurons, by block.

    Args:
        student: The model.
        batch: Labeled rows, on the model's device.
        widths: Its widths.
    """
    like = next(student.model.parameters()).detach()
    masks = [like.new_ones(n).requires_grad_() for n in widths.heads + widths.neurons]
    layers = range(1, len(widths.heads) + 1)
    places = [Capture(site, layer) for site in ("context", "neurons") for layer in layers]
    changes = [
        Change(place, _multiply(mask))
        for place, mask in zip(places, masks, strict=True)
        if len(mask)
    ]
    with torch.enable_grad(), student.changed(changes, batch.inputs):
        logits = student.model(**batch.inputs).logits
        loss = hard_labels(logits, batch.require_labels(), batch.targets).mean(batch.counts())
    return torch.autograd.grad(loss, masks, allow_unused=True, materialize_grads=True)


def _multiply(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies `[..., units * size]` by a mask over the units."""

    def apply(tensor: Tensor) -> Tensor:
        units: Tensor = mask.to(tensor.dtype)
        return tensor * units.repeat_interleave(tensor.shape[-1] // len(mask))

    return apply
