"""Per-sample losses, whatever items a loss is averaged over."""

from __future__ import annotations

from torch import Tensor

from gkd_core.api import Term


def per_sample(term: Term) -> Tensor:
    """Return each sample's loss `[B]`; in language modeling, its mean over the targets."""
    if term.values.dim() == 1:
        return term.values
    return term.values.sum(1) / term.over.mask.sum(1).clamp(min=1)
