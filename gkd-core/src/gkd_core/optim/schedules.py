"""The learning rate of each step."""

from __future__ import annotations

import math

from gkd_core.config.schema import TrainingConfig


def lr_factor(config: TrainingConfig, index: int, total: int) -> float:
    """Return the share of the peak learning rate at step `index` (0-based) of `total`."""
    warmup = round(config.warmup * total)
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(total - warmup, 1)
    if config.lr_schedule == "linear":
        return 1 - done
    if config.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
