"""Micro-batches in the order in which training and evaluation use them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gkd_core.data.batch import Batch
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.sampler import Sampler


def iterate(
    encoded: Encoded, collator: Collator, sampler: Sampler, start_step: int, total_steps: int
) -> Iterator[tuple[int, list[Batch]]]:
    """Yield the epoch and the micro-batches of each optimizer step.

    Args:
        encoded: The training split.
        collator: Makes the micro-batches.
        sampler: Chooses the rows.
        start_step: Steps already done: iteration starts right after them, as if never interrupted.
        total_steps: Steps of the stage.
    """
    first_epoch, skipped = divmod(start_step, sampler.steps_per_epoch)
    left = total_steps - start_step
    epoch = first_epoch
    while left > 0:
        steps = sampler.epoch(epoch)[skipped : skipped + left]
        for step in steps:
            yield epoch, [collator.collate(encoded, rows, epoch) for rows in step]
        left -= len(steps)
        epoch, skipped = epoch + 1, 0


def evaluation_batches(encoded: Encoded, collator: Collator, batch_size: int) -> Iterator[Batch]:
    """Yield every row once, longest first, so that a lack of memory shows at once.

    `Batch.rows` says where each prediction belongs.
    """
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    for start in range(0, len(order), batch_size):
        yield collator.collate(encoded, order[start : start + batch_size], EVALUATION_EPOCH)
