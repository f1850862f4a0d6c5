"""Losses: masked, per item, globally normalised; each primitive exists once.

Every primitive takes what is compared and `over`, the items of the batch it is averaged over, and
returns a `Term`. Computation is in fp32 (fp64 stays fp64) whatever the inputs are.
"""

from __future__ import annotations

from gkd_core.losses.distances import cosine, mse, normalized_mse
from gkd_core.losses.divergences import cross_entropy, kl, soft_cross_entropy
from gkd_core.losses.prediction import hard_labels, soft_labels
from gkd_core.losses.term import Term

__all__ = [
    "Term",
    "cosine",
    "cross_entropy",
    "hard_labels",
    "kl",
    "mse",
    "normalized_mse",
    "soft_cross_entropy",
    "soft_labels",
]
