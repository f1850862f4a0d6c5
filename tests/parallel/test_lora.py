"""Adapters on several ranks are trained as in one process, with weights that are not theirs."""

from __future__ import annotations

import pytest

LORA = ["student.lora.rank=4", "training.lr=1e-2", "training.evaluate_every=4"]
CASES = [
    ("classes", "teacher", ["method=pkd+soft", *LORA]),
    ("causal-lm", "lm-decoder", ["method=soft", "task.kind=causal-lm", *LORA]),
]
SLOW = [pytest.mark.exhaustive]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layouts", "chosen"),
    [
        pytest.param(["parallel.zero=3"], CASES[:1], id="zero 3"),
        pytest.param(["parallel.zero=0", "parallel.zero=1", "parallel.zero=2"], CASES, marks=SLOW),
        pytest.param(["parallel.zero=3 parallel.offload_params=cpu"], CASES, marks=SLOW),
    ],
)
def test_layouts_train_as_one_process_does(still, on_ranks, runs, tmp_path, layouts, chosen):
    runs.assert_layouts_equal(still, tmp_path, chosen, layouts, on_ranks)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_layout_may_change_between_checkpoints(still, on_ranks, runs, tmp_path):
    _, teacher, given = CASES[0]
    given = [*given, "training.checkpoint_every=2"]
    runs.train(still, tmp_path / "alone", teacher, given)
    for zero, ranks, dies_at in ((3, 2, 3), (0, 1, 5), (2, 2, None)):
        own = [*given, f"parallel.zero={zero}"]
        on_ranks(ranks, runs.train, still, tmp_path / "changed", teacher, own, dies_at)
    runs.assert_equal(tmp_path / "changed", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_weights_shared_with_the_teacher_train_as_in_one_process(still, on_ranks, runs, tmp_path):
    name, _, given = CASES[1]
    given = [*given, f"student.model={still / 'lm-decoder'}", "method=soft+hard"]
    runs.train(still, tmp_path / name, "lm-decoder", given)
    cases = [
        (f"zero {zero}", "lm-decoder", [*given, f"parallel.zero={zero}"]) for zero in (0, 1, 2, 3)
    ]
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    for case, *_ in cases:
        runs.assert_equal(tmp_path / case, tmp_path / name)
