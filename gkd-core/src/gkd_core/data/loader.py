"""Iterators over micro-batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from gkd_core.contract.batch import Batch
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.division import longest_first
from gkd_core.data.encode import Encoded
from gkd_core.data.readings import Reading, with_views
from gkd_core.data.sampler import Sampler
from gkd_core.distributed.data_parallel import deal, share


def iterate(
    encoded: Encoded,
    collator: Collator,
    sampler: Sampler,
    start_step: int,
    total_steps: int,
    readings: Sequence[Reading] = (),
) -> Generator[tuple[int, list[Batch]]]:
    """Yield the epoch and this rank's share of the micro-batches of each optimizer step.

    Args:
        encoded: The training split.
        collator: Builds the micro-batches.
        sampler: Selects the rows.
        start_step: Steps already done; iteration continues after them as if never interrupted.
        total_steps: Steps in the stage.
        readings: The rows as models with other tokenizers read them.
    """
    first_epoch, skipped = divmod(start_step, sampler.steps_per_epoch)
    left = total_steps - start_step
    epoch = first_epoch
    while left > 0:
        for step in islice(sampler.steps(epoch, skipped), left):
            yield epoch, [_share(encoded, collator, rows, epoch, readings) for rows in step]
            left -= 1
        epoch, skipped = epoch + 1, 0


def evaluation_batches(encoded: Encoded, collator: Collator, batch_size: int) -> Iterator[Batch]:
    """Yield this rank's share of the batches of all rows, longest first.

    This way running out of memory shows immediately. `Batch.rows` maps predictions to rows.
    """
    yield from given_batches(encoded, collator, longest_first(encoded.lengths, batch_size))


def given_batches(
    encoded: Encoded, collator: Collator, batches: Sequence[Sequence[int]]
) -> Iterator[Batch]:
    """Yield this rank's share of batches of rows, outside training."""
    for rows, counted in deal(batches):
        yield _batch(encoded, collator, rows, counted, EVALUATION_EPOCH)


def _share(
    encoded: Encoded,
    collator: Collator,
    rows: Sequence[int],
    epoch: int,
    readings: Sequence[Reading],
) -> Batch:
    """Return this rank's share of a micro-batch, padded to the same width on all ranks."""
    own, counted = share(rows)
    batch = _batch(encoded, collator, own, counted, epoch, int(encoded.lengths[rows].max()))
    return with_views(batch, readings, rows) if readings else batch


def _batch(
    encoded: Encoded,
    collator: Collator,
    rows: Sequence[int],
    counted: bool,
    epoch: int,
    width: int = 0,
) -> Batch:
    batch = collator.collate(encoded, rows, epoch, width)
    return batch if counted else replace(batch, counted=False)
