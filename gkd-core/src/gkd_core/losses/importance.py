"""`importance`: the weights of text that was drawn from another distribution than the student's."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch


def importance(surprise: Tensor, batch: Batch) -> Tensor:
    """Return q(y) / d(y) of each label y, a constant: q is the student, d what y was drawn from.

    Weighted by it, the mean of a function of single tokens over text that was drawn from d is that
    over the student's own. Text of the step's own weights has 1, but for rounding and dropout; text
    of earlier weights (`rollout.replay`) and of a server has what these change. With a share a of
    the teacher in each token (`rollout.mixture`), it is at most 1 / (1 - a).

    Args:
        surprise: -log q(y), `[B, S]`: the values of `cross_entropy`.
        batch: The micro-batch.
    """
    if batch.log_drawn is None:
        return torch.ones_like(surprise)
    weights = (-surprise.detach() - batch.log_drawn.to(surprise)).exp()
    return torch.where(batch.written_by("student").unsqueeze(1), weights, 1.0)
