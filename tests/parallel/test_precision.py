"""Runs in fp16: the loss is scaled, and a step whose gradient overflows is skipped by all ranks."""

from __future__ import annotations

import json

import pytest

LAYOUTS = {
    "tensor": ["parallel.tensor=2"],
    "ZeRO 2": ["parallel.zero=2"],
    "ZeRO 3": ["parallel.zero=3"],
}
HALF = ["method=0.01*bursts+soft", "task.kind=causal-lm", "training.precision=fp16"]
HALF += ["training.steps=6", "training.checkpoint_every=2", "training.evaluate_every=6"]


def lines(folder):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if "lr" in line]


@pytest.mark.exhaustive
def test_an_overflow_in_one_rank_is_skipped_by_all(still, on_ranks, runs, tmp_path):
    runs.train(still, tmp_path / "alone", "lm-decoder", HALF)
    runs.train(still, tmp_path / "full", "lm-decoder", [*HALF[:2], "training.steps=2"])
    cases = [(name, "lm-decoder", HALF + extra) for name, extra in LAYOUTS.items()]
    cases += [("resumed", "lm-decoder", HALF + LAYOUTS["ZeRO 3"], *dies) for dies in ((4,), ())]
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "ZeRO 3")
    full = [line["loss/total"] for line in lines(tmp_path / "full")]
    alone = lines(tmp_path / "alone")
    assert [line["loss/total"] for line in alone[:2]] == pytest.approx(full, rel=5e-3)
    for name in ("alone", *LAYOUTS):
        found = lines(tmp_path / name)
        assert [line["skipped_steps"] for line in found] == [0, 0, 1, 1, 1, 1]
        assert [line["loss_scale"] for line in found] == [2**16, 2**16] + [2**15] * 4
        assert ["gradient_norm" in line for line in found] == [True] * 2 + [False] + [True] * 3
        for mine, theirs in zip(found, alone, strict=True):
            kept = {key: theirs[key] for key in ("loss/soft", "gradient_norm") if key in theirs}
            assert {key: mine[key] for key in kept} == pytest.approx(kept, rel=2e-2)
