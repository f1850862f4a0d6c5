"""Several ranks that share the rows of every batch do what one process does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gkd_core.contract.batch import Batch
from gkd_core.distributed import data_parallel as data
from gkd_core.distributed.data_parallel import collect, deal, share, sum_gradients
from gkd_core.distributed.ranks import rank

CASES = {
    "pkd": ("teacher", ["method=pkd+soft"]),
    # The last batch of an epoch has one row, which only one rank can have.
    "one row": ("teacher", ["method=kd", "training.batch_size=19"]),
    "parts": ("teacher", ["method=pkd+hard", "training.accumulation=4"]),
    "causal-lm": ("lm-decoder", ["method=kd", "task.kind=causal-lm"]),
    "masked-lm": ("lm-teacher", ["method=soft", "task.kind=masked-lm"]),
    "own items": ("teacher", ["method=even+hard", "training.accumulation=2"]),
}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_ranks_train_as_one_process_does(still, on_ranks, runs, tmp_path, ranks):
    cases = [(name, *case) for name, case in CASES.items()]
    runs.train_all(still, tmp_path / "alone", cases)
    on_ranks(ranks, runs.train_all, still, tmp_path / "ranks", cases)
    for name in CASES:
        runs.assert_equal(tmp_path / "ranks" / name, tmp_path / "alone" / name)
    for line in (tmp_path / "ranks" / "own items" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("loss/even.ones", 1) == pytest.approx(1)


REMEMBERED = ["method=remembers+pkd", "training.checkpoint_every=3"]


@pytest.mark.exhaustive
def test_resumed_ranks_end_bit_equal(world, on_ranks, runs, tmp_path):
    """With dropout and with a state and draws in each rank: all of it must come back."""
    cases = [
        ("whole", "teacher", REMEMBERED),
        ("resumed", "teacher", REMEMBERED, 5),
        ("resumed", "teacher", REMEMBERED),
    ]
    on_ranks(2, runs.train_all, world, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.exhaustive
def test_other_number_of_ranks_goes_on(still, on_ranks, runs, tmp_path):
    settings = ["method=pkd+soft", "training.checkpoint_every=3"]
    runs.train(still, tmp_path / "alone", "teacher", settings)
    on_ranks(2, runs.train, still, tmp_path / "changed", "teacher", settings, 5)
    runs.train(still, tmp_path / "changed", "teacher", settings)
    runs.assert_equal(tmp_path / "changed", tmp_path / "alone")


def test_each_rank_drops_out_of_its_own(world, on_ranks, runs, tmp_path):
    first, second = on_ranks(2, runs.draws_after_training, world, tmp_path / "run")
    assert first != second


def _shares(rows, batches):
    done = [item for item, counted in deal(batches) if counted]
    tried = sum(1 for _ in deal(batches))
    return share(rows), tried, collect(done)


def test_rows_are_shared_without_loss_and_all_ranks_do_as_much(on_ranks):
    found = on_ranks(3, _shares, list(range(7)), list("abcd"))
    shared = [row for (rows, counted), _, _ in found if counted for row in rows]
    assert sorted(shared) == list(range(7))
    assert [tried for _, tried, _ in found] == [2, 2, 2]
    assert [collected for _, _, collected in found] == [list("abcd")] * 3


def test_rank_without_rows_repeats_one_that_does_not_count(on_ranks):
    found = on_ranks(3, _shares, [5, 8], list("ab"))
    assert [share for share, _, _ in found] == [([5], True), ([8], True), ([5], False)]


def _gradients(uses, bucket):
    weights = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    for weight in weights[: uses[rank()]]:
        weight.grad = torch.full((3,), 1.0 + rank())
    weights[1].grad = torch.full((2, 3), 1.0 + rank()).T[:, 0]
    data.JOINED = bucket
    sum_gradients(weights)
    return [None if w.grad is None else w.grad.numpy() for w in weights]


@pytest.mark.parametrize("bucket", [2**24, 2], ids=["joined", "in place"])
def test_gradients_are_summed_and_unused_weights_stay_without(on_ranks, bucket):
    for shared, strided, single, unused in on_ranks(2, _gradients, [3, 2], bucket):
        for both in (shared, strided):
            np.testing.assert_array_equal(both, [3.0] * 3)
        np.testing.assert_array_equal(single, [1.0] * 3)
        assert unused is None


def test_rows_that_do_not_count_are_not_counted():
    batch = Batch(
        {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)},
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
    )
    idle = replace(batch, counted=False)
    assert set(batch.counts().values()) == {2, 6}
    assert set(idle.counts().values()) == {0}
    assert set(idle.to(torch.device("cpu")).counts().values()) == {0}
