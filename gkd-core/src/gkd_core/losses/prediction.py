"""The losses of a prediction, whatever is predicted: classes, tokens or a value."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from gkd_core.data.batch import Items
from gkd_core.losses.distances import mse
from gkd_core.losses.divergences import cross_entropy, kl
from gkd_core.losses.term import Term


def soft_labels(
    student: Tensor, teacher: Tensor, over: Items, temperature: float, scale: bool = True
) -> Term:
    """KL divergence to the teacher's distribution; squared error for a regression (one logit).

    Vocabularies of language models may be padded to different widths: columns that the student
    does not have are cut, and those that the teacher does not have get no probability.

    Args:
        student: Logits `[*items, C]`.
        teacher: Logits `[*items, C]`; in language modelling C may differ.
        over: The items averaged over.
        temperature: T of the divergence.
        scale: Multiply the divergence by T^2.
    """
    if student.shape[-1] == 1:
        return mse(student, teacher, over)
    if student.dim() == 3:
        teacher = _match_vocabulary(teacher, student.shape[-1])
    return kl(student, teacher, over, temperature, scale)


def hard_labels(logits: Tensor, labels: Tensor, over: Items) -> Term:
    """Cross-entropy of the labels; squared error where the labels are values.

    Args:
        logits: `[*items, C]`.
        labels: int64 `[*items]`, or floating point for a regression (C = 1).
        over: The items averaged over.
    """
    if labels.is_floating_point():
        return mse(logits, labels.unsqueeze(-1), over)
    return cross_entropy(logits, labels, over)


def _match_vocabulary(teacher: Tensor, width: int) -> Tensor:
    missing = width - teacher.shape[-1]
    if missing <= 0:
        return teacher[..., :width]
    return functional.pad(teacher, (0, missing), value=-math.inf)
