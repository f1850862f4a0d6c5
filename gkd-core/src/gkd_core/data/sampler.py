"""Sampling: the rows of each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

POOL = 50
"""Number of batches in a pool within which rows are sorted by length."""


def fewest_samples(rows: int, accumulation: int) -> int:
    """Return the number of rows in the smallest micro-batch of a batch.

    Args:
        rows: Rows in the batch.
        accumulation: Micro-batches into which it is split.
    """
    return rows // min(accumulation, rows)


class Sampler:
    """Draws the batches of every epoch, determined by the seed and the epoch.

    Every row occurs exactly once per epoch; one batch may be smaller. With bucketing, the shuffled
    rows are sorted by length within pools of `POOL` batches, and then the batches are shuffled.

    Args:
        lengths: Length of each row in tokens.
        batch_size: Rows per optimizer step.
        accumulation: Micro-batches per optimizer step; does not change its rows.
        seed: Seed of the order.
        bucketing: Whether to batch rows of similar length.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        accumulation: int,
        seed: int,
        bucketing: bool,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.bucketing = bucketing

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, number: int) -> list[list[list[int]]]:
        """Return the row indices of each micro-batch of each optimizer step of an epoch."""
        return list(self.steps(number))

    def steps(self, number: int, first: int = 0) -> Iterator[list[list[int]]]:
        """Yield the row indices of each micro-batch of the optimizer steps of an epoch.

        Args:
            number: The epoch.
            first: The step to begin with.
        """
        # One generator per epoch: a resumed run need not replay the earlier epochs.
        draw = np.random.default_rng([self.seed, number])
        order = draw.permutation(len(self.lengths))
        if self.bucketing:
            self._sort_in_pools(order)
        batches = [order[start : start + self.batch_size] for start in self._starts()]
        if self.bucketing:
            batches = [batches[index] for index in draw.permutation(len(batches))]
        yield from map(self._micro_batches, batches[first:])

    def _starts(self) -> range:
        return range(0, len(self.lengths), self.batch_size)

    def _sort_in_pools(self, order: NDArray[np.int64]) -> None:
        cuts = range(POOL * self.batch_size, len(order), POOL * self.batch_size)
        for pool in np.split(order, cuts):
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]

    def _micro_batches(self, batch: NDArray[np.int64]) -> list[list[int]]:
        parts = np.array_split(batch, min(self.accumulation, len(batch)))
        return [part.tolist() for part in parts]
