"""Methods are told of their stage on every rank, and tensors of their state come back."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

QUEUES = ["method=pkd+queues", "training.checkpoint_every=3"]


rest = pytest.mark.exhaustive


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("ranks", "layout", "files"),
    [
        (1, [], {"methods.safetensors"}),
        pytest.param(2, [], {"methods.safetensors", "methods-1.safetensors"}, marks=rest),
        (2, ["parallel.tensor=2"], {"methods.safetensors"}),
        pytest.param(
            2, ["parallel.zero=3"], {"methods.safetensors", "methods-1.safetensors"}, marks=rest
        ),
    ],
    ids=["alone", "data", "tensor", "zero"],
)
def test_resumed_tensors_end_bit_equal(world, on_ranks, runs, tmp_path, ranks, layout, files):
    settings = [*QUEUES, *layout]
    cases = [("whole", "teacher", settings), ("resumed", "teacher", settings, 5)]
    on_ranks(ranks, runs.train_all, world, tmp_path, cases)
    (kept,) = (tmp_path / "resumed").glob("stages/*/checkpoints/step-00000003")
    found = {path.name: load_file(path) for path in kept.glob("methods*")}
    assert found.keys() == files
    assert all(sorted(t.shape for t in ts.values())[-1] == (24, 32) for ts in found.values())
    on_ranks(ranks, runs.train, world, tmp_path / "resumed", "teacher", settings)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.exhaustive
def test_other_number_of_ranks_goes_on_with_the_state_of_the_first(world, on_ranks, runs, tmp_path):
    on_ranks(2, runs.train, world, tmp_path / "run", "teacher", QUEUES, 5)
    three = on_ranks(3, runs.events_of, world, tmp_path / "run", QUEUES)
    assert [events[0][:2] for events in three] == [("start", 24)] * 3


def test_every_rank_is_told_the_same(world, on_ranks, runs, tmp_path):
    first, second = on_ranks(2, runs.events_of, world, tmp_path / "run", QUEUES)
    assert first == second
    assert [event[0] for event in first] == ["start", "evaluate", "evaluate", "end"]
    assert first[-1] == ("end", "NoneType")
