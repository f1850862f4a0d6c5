"""Losses: masked, per item, globally normalized; each primitive exists once.

Every primitive takes the tensors to compare and `over`, the items of the batch to average over, and
returns a `Term`. Computation is in fp32 (fp64 stays fp64), whatever the inputs are.
"""

from __future__ import annotations

from gkd_core.losses.angles import angles, windows
from gkd_core.losses.contrast import contrast
from gkd_core.losses.distances import cosine, huber, mse, normalized_mse
from gkd_core.losses.divergences import (
    adaptive_kl,
    cross_entropy,
    js,
    kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from gkd_core.losses.logits import LinearLogits, Logits
from gkd_core.losses.own_divergence import CustomDivergence, DivergenceRule, divergence
from gkd_core.losses.relation import Relation, self_relation
from gkd_core.losses.relation_losses import relation_kl, relation_mse
from gkd_core.losses.soft_labels import Divergence, hard_labels, logits_mse, soft_labels
from gkd_core.losses.term import Term
from gkd_core.losses.top_k import TopKLogits

__all__ = [
    "CustomDivergence",
    "Divergence",
    "DivergenceRule",
    "LinearLogits",
    "Logits",
    "Relation",
    "Term",
    "TopKLogits",
    "adaptive_kl",
    "angles",
    "contrast",
    "cosine",
    "cross_entropy",
    "divergence",
    "hard_labels",
    "huber",
    "js",
    "kl",
    "logits_mse",
    "mse",
    "normalized_mse",
    "relation_kl",
    "relation_mse",
    "reverse_kl",
    "self_relation",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "soft_labels",
    "total_variation",
    "windows",
]
