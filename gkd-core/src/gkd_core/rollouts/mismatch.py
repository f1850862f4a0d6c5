"""`mismatch`: how far the probabilities with which text was drawn are from those of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gkd_core.contract.batch import Batch
from gkd_core.distributed.data_parallel import sum_over_ranks
from gkd_core.rollouts.writer import Writer


def mismatch(writer: Writer, batches: Sequence[Batch]) -> float:
    """Return the mean difference between two log-probabilities of each token of a student's text.

    One is `Batch.log_drawn`; the other is that of a forward pass as in training, but without
    dropout. All ranks call this, and at least one has text of the student.

    Args:
        writer: The student.
        batches: The micro-batches of a step, on the CPU, with text of its current weights.
    """
    total = {name: torch.zeros((), dtype=torch.float64) for name in ("difference", "tokens")}
    with writer.writing(0):
        for batch in batches:
            own, found = writer.log_probs(batch)  # also without text: other ranks may have some
            if batch.log_drawn is not None:
                total["difference"] += (found - batch.log_drawn)[own].abs().sum()
                total["tokens"] += own.sum()
    total = sum_over_ranks(total)
    return float(total["difference"] / total["tokens"])
