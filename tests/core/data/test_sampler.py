from __future__ import annotations

import numpy as np
import pytest

from gkd_core.data.sampler import POOL, Sampler

LENGTHS = np.random.default_rng(0).integers(1, 100, size=1003)


def sampler(batch_size=8, accumulation=1, seed=1, bucketing=True, lengths=LENGTHS):
    return Sampler(lengths, batch_size, accumulation, seed, bucketing)


def rows_of(step):
    return [row for micro_batch in step for row in micro_batch]


@pytest.mark.parametrize("bucketing", [True, False])
@pytest.mark.parametrize(("size", "batch_size"), [(1003, 8), (16, 8), (3, 8), (1, 1), (1003, 1)])
def test_every_row_comes_once_an_epoch(size, batch_size, bucketing):
    made = sampler(batch_size, bucketing=bucketing, lengths=LENGTHS[:size])
    for number in range(3):
        steps = made.epoch(number)
        assert len(steps) == made.steps_per_epoch
        assert sorted(row for step in steps for row in rows_of(step)) == list(range(size))
        sizes = sorted(len(rows_of(step)) for step in steps)
        assert sizes[1:] == [batch_size] * (len(sizes) - 1)
        assert sizes[0] == size - (len(sizes) - 1) * batch_size


@pytest.mark.parametrize("bucketing", [True, False])
def test_order_depends_on_seed_and_epoch_only(bucketing):
    made = sampler(bucketing=bucketing)
    assert made.epoch(4) == sampler(bucketing=bucketing).epoch(4)
    assert made.epoch(4) != made.epoch(5)
    assert made.epoch(4) != sampler(seed=2, bucketing=bucketing).epoch(4)


@pytest.mark.parametrize("accumulation", [2, 3, 8, 20])
def test_accumulation_keeps_the_rows_of_a_step(accumulation):
    whole, split = sampler().epoch(0), sampler(accumulation=accumulation).epoch(0)
    assert [rows_of(step) for step in split] == [rows_of(step) for step in whole]
    for step in split:
        sizes = [len(micro_batch) for micro_batch in step]
        assert len(sizes) == min(accumulation, sum(sizes))
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


def test_bucketing_saves_padding():
    def padded(steps):
        return sum(len(rows_of(s)) * max(LENGTHS[row] for row in rows_of(s)) for s in steps)

    plain, bucketed = sampler(bucketing=False).epoch(0), sampler().epoch(0)
    assert padded(plain) > 1.5 * LENGTHS.sum()
    assert padded(bucketed) < 1.1 * LENGTHS.sum()


def test_bucketing_does_not_order_the_batches_by_length():
    lengths = [LENGTHS[rows_of(step)].mean() for step in sampler().epoch(0)[:POOL]]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.5


def test_bucketing_mixes_a_row_with_others_from_epoch_to_epoch():
    made = sampler()
    mates = [next(set(rows_of(s)) for s in made.epoch(n) if 0 in rows_of(s)) for n in range(2)]
    assert mates[0] != mates[1]
