"""The influence of each block, and the selection of blocks by it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch.nn import functional

from gkd_core.contract.batch import Batch
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture


@torch.no_grad()
def measure_blocks(model: Extractor, batches: Iterable[Batch], device: torch.device) -> list[float]:
    """Return the block influence of each block: 1 minus the cosine of its input and its output.

    The mean is over all positions that are not padding (Men et al., ShortGPT, 2024,
    arXiv:2403.03853, section 2.3).

    Args:
        model: The model.
        batches: Calibration rows.
        device: Device of the model.
    """
    layers = range(len(model.sites.blocks) + 1)
    wanted = frozenset(Capture("hidden", layer) for layer in layers)
    totals = torch.zeros(len(model.sites.blocks), dtype=torch.float64)
    positions = 0
    was_training = model.model.training
    model.model.eval()
    try:
        for batch in batches:
            moved = batch.to(device)
            found = model.run(wanted, moved.inputs)
            states = [found[Capture("hidden", layer)][moved.mask].double() for layer in layers]
            for block, (before, after) in enumerate(pairwise(states)):
                totals[block] += (1 - functional.cosine_similarity(before, after)).sum().cpu()
            positions += moved.tokens.count
    finally:
        model.model.train(was_training)
    influence: list[float] = (totals / max(positions, 1)).tolist()
    return influence


def most_important(influence: list[float], count: int) -> list[int]:
    """Return the most important blocks, counted from 1, in model order."""
    order = sorted(range(len(influence)), key=lambda block: (-influence[block], block))
    return sorted(block + 1 for block in order[:count])
