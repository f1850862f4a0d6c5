"""ZeRO 1 to 3, with and without offload, do what one process does."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from gkd_core.config.schema import ParallelConfig
from gkd_core.errors import ConfigError
from gkd_core.optim import deepspeed as engine
from gkd_core.optim.deepspeed import check_engine

slow = pytest.mark.slow
rest = [pytest.mark.slow, pytest.mark.exhaustive]
ZERO = pytest.mark.parametrize(
    "zero", [pytest.param(1, marks=rest), pytest.param(2, marks=rest), 3]
)
# ZeRO lets weights decay that no loss reaches.
NO_DECAY = "training.weight_decay=0"
TWENTY = ["training.steps=20", "training.evaluate_every=10"]
CASES = [
    ("kd", "teacher", ["method=kd", *TWENTY]),
    ("pkd", "teacher", ["method=pkd+soft", *TWENTY]),
    ("parts", "teacher", ["method=moves+soft", "training.accumulation=2"]),
    ("rates", "teacher", ["method=unlocks+soft", "training.keep_best=false"]),
    ("one row", "teacher", ["method=pkd+soft", "training.batch_size=19", "training.clip=0"]),
    ("causal-lm", "lm-decoder", ["method=soft", "task.kind=causal-lm", "training.accumulation=4"]),
    # Captured queries are inside of the last block, whose end no loss reads.
    (
        "recomputed",
        "teacher",
        ["method=pkd+minilmv2", "training.gradient_checkpointing=true", NO_DECAY],
    ),
]
FEW = ("parts", "rates", "causal-lm", "recomputed")
"""Cases of `make test`; what the others show, these show too, in fewer steps."""


@pytest.fixture(scope="module")
def alone(still, runs, tmp_path_factory):
    """`alone("kd")`: the folder of the same run in one process, which is trained once."""
    folder = tmp_path_factory.mktemp("alone")

    def _alone(name):
        if not (folder / name).exists():
            runs.train_all(still, folder, [case for case in CASES if case[0] == name])
        return folder / name

    return _alone


def _with(cases, *settings):
    return [(name, teacher, [*own, *settings]) for name, teacher, own in cases]


@pytest.mark.parametrize(
    ("zero", "names"),
    [
        pytest.param(3, FEW, id="3"),
        pytest.param(3, ("kd", "pkd", "one row"), id="3, others", marks=rest),
        pytest.param(1, [case[0] for case in CASES], id="1", marks=rest),
        pytest.param(2, [case[0] for case in CASES], id="2", marks=rest),
    ],
)
def test_zero_trains_as_one_process_does(still, on_ranks, runs, alone, tmp_path, zero, names):
    cases = [case for case in CASES if case[0] in names]
    on_ranks(2, runs.train_all, still, tmp_path, _with(cases, f"parallel.zero={zero}"))
    for name in names:
        runs.assert_equal(tmp_path / name, alone(name))
        _assert_saved_whole(tmp_path / name, alone(name))


def _assert_saved_whole(found, expected):
    """One rank saves the student, and what it wrote on the way is gone."""
    mine, theirs = (load_file(run / "student" / "model.safetensors") for run in (found, expected))
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    assert all(t.dtype == torch.float32 for t in mine.values())
    assert not list(found.rglob("*.tmp"))


OFFLOADED = {
    "optimizer under 1": ["parallel.zero=1", "parallel.offload_optimizer=cpu"],
    "optimizer under 2": ["parallel.zero=2", "parallel.offload_optimizer=cpu"],
    "weights": ["parallel.zero=3", "parallel.offload_params=cpu"],
    "both": ["parallel.zero=3", "parallel.offload_optimizer=cpu", "parallel.offload_params=cpu"],
}


@slow
@pytest.mark.exhaustive
def test_offloaded_zero_trains_as_one_process_does(still, on_ranks, runs, alone, tmp_path):
    chosen = [case for case in CASES if case[0] in ("pkd", "parts")]
    cases = [
        (f"{name} {place}", teacher, settings)
        for place, extra in OFFLOADED.items()
        for name, teacher, settings in _with(chosen, *extra)
    ]
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    for name, *_ in cases:
        runs.assert_equal(tmp_path / name, alone(name.split()[0]))


@pytest.mark.exhaustive
def test_unlocking_survives_a_change_of_layout(still, on_ranks, runs, tmp_path):
    """Parts have done different numbers of steps, and some none, when the run goes on."""
    settings = [
        "method=unlocks+soft",
        "training.keep_best=false",
        "training.checkpoint_every=2",
    ]
    runs.train(still, tmp_path / "alone", "teacher", settings)
    for zero, ranks, dies_at in ((3, 2, 3), (1, 2, 5), (0, 1, 7), (2, 2, None)):
        own = [*settings, f"parallel.zero={zero}"]
        on_ranks(ranks, runs.train, still, tmp_path / "changed", "teacher", own, dies_at)
    runs.assert_equal(tmp_path / "changed", tmp_path / "alone")


@slow
@pytest.mark.exhaustive
def test_three_ranks_divide_what_three_does_not(still, on_ranks, runs, alone, tmp_path):
    (case,) = _with([case for case in CASES if case[0] == "pkd"], "parallel.zero=3")
    on_ranks(3, runs.train_all, still, tmp_path, [case])
    runs.assert_equal(tmp_path / "pkd", alone("pkd"))


@ZERO
def test_resumed_zero_ends_bit_equal(world, on_ranks, runs, tmp_path, zero):
    settings = ["method=remembers+pkd", "training.checkpoint_every=3", f"parallel.zero={zero}"]
    cases = [
        ("whole", "teacher", settings),
        ("resumed", "teacher", settings, 5),
        ("resumed", "teacher", settings),
    ]
    on_ranks(2, runs.train_all, world, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("before", "after"),
    [(3, 0), (0, 3), (2, 3), (3, 1)],
)
def test_run_goes_on_under_another_layout(still, on_ranks, runs, tmp_path, before, after):
    settings = ["method=pkd+soft", "training.checkpoint_every=3"]
    runs.train(still, tmp_path / "alone", "teacher", settings)
    first = [*settings, f"parallel.zero={before}"]
    second = [*settings, f"parallel.zero={after}"]
    on_ranks(2, runs.train, still, tmp_path / "changed", "teacher", first, 5)
    on_ranks(3, runs.train, still, tmp_path / "changed", "teacher", second)
    runs.assert_equal(tmp_path / "changed", tmp_path / "alone")


@pytest.mark.exhaustive
def test_losses_over_a_vocabulary_stay_fused_under_zero_3(still, on_ranks, runs, tmp_path):
    arguments = (still, tmp_path, ["parallel.zero=3"])
    assert on_ranks(2, runs.losses_over_vocabulary, *arguments) == [["LinearLogits"]] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"offload_optimizer": "cpu"}, r"offload_optimizer = 'cpu' needs zero = 1 or more, not 0"),
        ({"zero": 2, "offload_params": "cpu"}, r"offload_params = 'cpu' needs zero = 3, not 2"),
        ({"zero": 3, "offload_optimizer": "nvme"}, r"nvme needs nvme_path"),
        ({"zero": 4}, r"less than or equal to 3"),
    ],
)
def test_offload_that_zero_cannot_do_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        ParallelConfig(**given)


def test_missing_deepspeed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_engine(ParallelConfig())
    with pytest.raises(ConfigError, match=r"parallel.zero = 2 needs DeepSpeed.*gkd-core\[parallel"):
        check_engine(ParallelConfig(zero=2))


def test_missing_libaio_is_named(monkeypatch):
    builder = SimpleNamespace(is_compatible=lambda verbose: False)
    operations = SimpleNamespace(AsyncIOBuilder=lambda: builder)
    monkeypatch.setattr(engine, "_import_deepspeed", lambda device: None)
    monkeypatch.setitem(sys.modules, "deepspeed.ops.op_builder", operations)
    with pytest.raises(ConfigError, match=r"offloading to nvme needs libaio"):
        check_engine(ParallelConfig(zero=3, offload_params="nvme", nvme_path="/tmp"))
