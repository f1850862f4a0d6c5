"""The learning rate of each step."""

from __future__ import annotations

import math

from gkd_core.config.schema import TrainingConfig


def lr_factor(config: TrainingConfig, index: int, total: int) -> float:
    """Return the share of the peak learning rate at step `index` (0-based) of `total`."""
    warmup = round(config.warmup * total)
    if index < warmup:
        return (index + 1) / warmup
    if config.lr_schedule == "inverse-sqrt":
        peak = max(warmup, 1)
        return math.sqrt(peak / (peak + index - warmup))
    if config.lr_schedule == "warmup-stable-decay":
        begins = max(total - round(config.lr_decay_share * total), warmup)
        return _above_floor(config, 1 - max(index - begins, 0) / max(total - begins, 1))
    done = (index - warmup) / max(total - warmup, 1)
    if config.lr_schedule == "linear":
        return _above_floor(config, 1 - done)
    if config.lr_schedule == "cosine":
        return _above_floor(config, (1 + math.cos(math.pi * done)) / 2)
    if config.lr_schedule == "polynomial":
        return _above_floor(config, (1 - done) ** config.lr_power)
    return 1.0


def _above_floor(config: TrainingConfig, factor: float) -> float:
    """Return a factor from 0 to 1 moved to the range from `lr_floor` to 1."""
    return config.lr_floor + (1 - config.lr_floor) * factor
