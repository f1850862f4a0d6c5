"""The plugins of one file each on two ranks: they train as one process does."""

from __future__ import annotations

import pytest

SETTINGS = ["student.layers=2", "training.steps=4", "training.evaluate_every=4"]
CASES = {
    "dist": ("teacher", ["method=dist+hard"]),
    "memory-queue": ("teacher", ["method=memory-queue", "memory-queue.size=80"]),
    "projected-head": ("teacher", ["method=projected-head"]),
    "confidence": ("teacher+decoder", ["method=confidence(soft)"]),
}
LAYOUTS = {"tensor": ["parallel.tensor=2"], "data": []}


def _cases(layout):
    return [(name, teachers, [*own, *SETTINGS, *layout]) for name, (teachers, own) in CASES.items()]


@pytest.fixture(scope="module")
def alone(still, runs, tmp_path_factory):
    """The runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    runs.train_all(still, folder, _cases([]))
    return folder


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor", pytest.param("data", marks=pytest.mark.exhaustive)])
def test_two_ranks_train_as_one_process_does(still, on_ranks, runs, alone, tmp_path, layout):
    on_ranks(2, runs.train_all, still, tmp_path, _cases(LAYOUTS[layout]))
    for name in CASES:
        runs.assert_equal(tmp_path / name, alone / name)


@pytest.mark.exhaustive
def test_a_queue_of_two_ranks_is_resumed_bit_equal(still, on_ranks, runs, tmp_path):
    settings = [*CASES["memory-queue"][1], *SETTINGS, "training.checkpoint_every=2"]
    settings = [*settings, "parallel.tensor=2"]
    cases = [
        ("whole", "teacher", settings),
        ("resumed", "teacher", settings, 3),
        ("resumed", "teacher", settings),
    ]
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")
