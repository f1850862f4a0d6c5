"""Samples of a micro-batch whose rows several ranks share, gathered and summed."""

from __future__ import annotations

import pytest
import torch

from gkd_core.api import Batch
from gkd_core.distributed.ranks import rank
from gkd_core.distributed.samples import all_samples, sum_samples


def _gathered(sizes, idle):
    """Gather vectors of this rank's samples; the loss of a rank depends on those of all."""
    number = rank()
    values = torch.arange(2.0 * sizes[number]).view(-1, 2) + 10 * number
    values = values.double().requires_grad_()
    batch = Batch({}, None, torch.arange(sizes[number]), counted=number != idle)
    found = all_samples(values, batch)
    products = found.values @ found.values.T * found.counts
    products[found.own][:, found.counts].sum().mul(batch.counted).backward()
    total = sum_samples(values, batch)
    return (
        found.values.tolist(),
        found.counts.tolist(),
        (found.own.start, found.own.stop, found.number),
        values.grad.tolist(),
        total.tolist(),
    )


@pytest.mark.parametrize(("sizes", "idle"), [([2, 1, 3], None), ([2, 1, 1], 2)])
def test_samples_of_all_ranks_are_as_in_one_batch(on_ranks, sizes, idle):
    results = on_ranks(3, _gathered, sizes, idle)
    parts = [torch.arange(2.0 * n).view(-1, 2) + 10 * i for i, n in enumerate(sizes)]
    whole = torch.cat(parts).double()
    there = torch.cat([torch.full((n,), i != idle) for i, n in enumerate(sizes)])
    kept = whole[there].requires_grad_()
    (kept @ kept.T).sum().backward()
    expected = torch.zeros_like(whole)
    expected[there] = kept.grad
    start = 0
    for size, (values, counts, own, gradient, total) in zip(sizes, results, strict=True):
        assert values == whole.tolist()
        assert counts == there.tolist()
        assert own == (start, start + size, int(there.sum()))
        assert gradient == expected[start : start + size].tolist()
        assert total == kept.sum(0).tolist()
        start += size
