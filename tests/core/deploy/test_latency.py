"""How often models are timed."""

from __future__ import annotations

import time

import pytest
import torch

from gkd_core.contract.batch import Batch
from gkd_core.deploy import latency


class Timed:
    def __init__(self, seconds):
        self.seconds = seconds
        self.calls = 0

    def __call__(self, input_ids):
        self.calls += 1
        time.sleep(self.seconds)


def samples(count):
    ids = torch.ones(1, 2, dtype=torch.int64)
    return [Batch({"input_ids": ids}, None, torch.tensor([row])) for row in range(count)]


@pytest.mark.parametrize(("enough", "rounds"), [(60.0, latency.ROUNDS), (0.0, 1)])
def test_every_model_sees_every_sample_until_it_is_enough(enough, rounds, monkeypatch):
    monkeypatch.setattr(latency, "ENOUGH", enough)
    fast, slow = Timed(0.001), Timed(0.02)
    found = latency.latencies([fast, slow], [samples(4), samples(4)])
    assert fast.calls == slow.calls == 1 + 4 * rounds
    assert 1 < found[0] < found[1]
