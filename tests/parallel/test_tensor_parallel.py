"""Runs whose models are divided over tensor groups do what one process does."""

from __future__ import annotations

import json

import pytest

from gkd_core.errors import ConfigError
from gkd_core.evaluation.predictions import Predictions
from gkd_core.plugins import registry

KINDS = registry().kinds

rest = [pytest.mark.slow, pytest.mark.exhaustive]
CASES = [
    ("hard", "teacher", ["method=hard"]),
    ("kd", "teacher", ["method=kd"]),
    ("pkd", "teacher", ["method=pkd+soft"]),
    # ZeRO lets weights decay that no loss reaches.
    ("minilm", "teacher", ["method=minilm", "training.weight_decay=0"]),
    ("minilmv2", "teacher", ["method=minilmv2"]),
    ("causal-lm", "lm-decoder", ["method=soft", "task.kind=causal-lm"]),
    ("borrows", "teacher", ["method=borrows"]),
]


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


LAYOUTS = {
    "student and teacher": (2, ["parallel.tensor=2"]),
    "teacher alone": (2, ["teacher.tensor=2"]),
    "student alone": (2, ["parallel.tensor=2", "teacher.tensor=1"]),
    "two copies": (4, ["parallel.tensor=2"]),
    "a wider teacher": (4, ["parallel.tensor=2", "teacher.tensor=4"]),
    "ZeRO 2": (4, ["parallel.tensor=2", "parallel.zero=2"]),
    "ZeRO 3 and a wider teacher": (4, ["parallel.tensor=2", "parallel.zero=3", "teacher.tensor=4"]),
}
QUICK = "student and teacher"
FEW = ("pkd", "minilm", "causal-lm")
"""Values of layers, relations between them, and a vocabulary that is divided."""
BLOCKS = ("borrows",)
OTHERS = ("hard", "kd", "minilmv2")


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        pytest.param(QUICK, FEW + BLOCKS, id=QUICK),
        pytest.param(QUICK, OTHERS, id=f"{QUICK}, others", marks=rest),
        *(pytest.param(name, FEW, id=name, marks=rest) for name in LAYOUTS if name != QUICK),
    ],
)
def test_divided_models_train_as_whole_ones_do(
    still, on_ranks, runs, alone, tmp_path, layout, names
):
    ranks, settings = LAYOUTS[layout]
    chosen = [case for case in CASES if case[0] in names]
    on_ranks(ranks, runs.train_on_shares, still, tmp_path, _with(chosen, *settings))
    for name in names:
        runs.assert_equal(tmp_path / name, alone(name))


SECOND_PASS = ("moves", "teacher", ["method=moves+soft", "training.accumulation=2"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("teacher", [pytest.param(1, marks=rest), 2])
def test_second_passes_and_gradients_within_a_step(still, on_ranks, runs, tmp_path, teacher):
    name, model, settings = SECOND_PASS
    runs.train(still, tmp_path / "alone", model, settings)
    layout = ["parallel.tensor=2", f"teacher.tensor={teacher}"]
    on_ranks(2, runs.train, still, tmp_path / name, model, [*settings, *layout])
    runs.assert_equal(tmp_path / name, tmp_path / "alone")


REMEMBERED = ["method=remembers+pkd", "training.checkpoint_every=3", "parallel.tensor=2"]


@pytest.mark.parametrize(
    ("ranks", "extra"),
    [
        (2, []),
        pytest.param(4, [], marks=rest),
        pytest.param(4, ["parallel.zero=3"], marks=rest),
        pytest.param(4, ["parallel.zero=1", "teacher.tensor=4"], marks=rest),
    ],
)
def test_resumed_run_ends_bit_equal(world, on_ranks, runs, tmp_path, ranks, extra):
    """With dropout and with a state and draws in each share: all of it must come back."""
    settings = [*REMEMBERED, *extra]
    cases = [
        ("whole", "teacher", settings),
        ("resumed", "teacher", settings, 5),
        ("resumed", "teacher", settings),
    ]
    on_ranks(ranks, runs.train_all, world, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")


TENSOR = ["parallel.tensor=2"]
DIVIDED = ["parallel.tensor=2", "parallel.zero=3"]
MOVES = {
    "to data parallelism": ((2, TENSOR), (3, [])),
    "from ZeRO to tensor parallelism": ((2, ["parallel.zero=2"]), (2, TENSOR)),
    "to both": ((2, []), (4, DIVIDED)),
    "to one process": ((4, DIVIDED), (1, [])),
}


@pytest.mark.parametrize(
    "move",
    [pytest.param(name, marks=() if name == "to data parallelism" else rest) for name in MOVES],
)
def test_run_goes_on_under_another_layout(still, on_ranks, runs, tmp_path, move):
    settings = ["method=pkd+soft", "training.checkpoint_every=3"]
    runs.train(still, tmp_path / "alone", "teacher", settings)
    (before, first), (after, second) = MOVES[move]
    changed = (still, tmp_path / "changed", "teacher")
    on_ranks(before, runs.train, *changed, [*settings, *first], 5)
    on_ranks(after, runs.train, *changed, [*settings, *second])
    runs.assert_equal(tmp_path / "changed", tmp_path / "alone")


def _students(still):
    return [
        ("fresh", "teacher", ["method=pkd+soft", "student.init=random"]),
        ("narrow", "teacher", ["method=hard", "student.hidden_size=16", "student.init=last"]),
        ("of a checkpoint", "decoder", ["method=soft", f"student.model={still}/lm-decoder"]),
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "layout", [["parallel.tensor=2"], pytest.param(["teacher.tensor=2"], marks=rest)]
)
def test_every_start_of_a_student_is_divided(still, on_ranks, runs, tmp_path, layout):
    cases = _students(still)
    runs.train_all(still, tmp_path / "alone", cases)
    on_ranks(2, runs.train_all, still, tmp_path / "ranks", _with(cases, *layout))
    for name, *_ in cases:
        runs.assert_equal(tmp_path / "ranks" / name, tmp_path / "alone" / name)


def _counts(still):
    import torch
    import torch.distributed as dist

    from gkd_core.models.load import load_teacher
    from gkd_core.models.save import count_embedding_parameters, count_parameters
    from gkd_core.parallel.loading import ShardReader

    read = ShardReader(dist.group.WORLD, torch.device("cpu"))
    found = []
    for reader in (None, read):
        path = str(still / "lm-teacher")
        model = load_teacher(path, KINDS["masked-lm"], (), False, "teacher.model", reader)
        found.append((count_parameters(model), count_embedding_parameters(model)))
    return found


def test_parameters_of_a_divided_model_are_those_of_the_whole_one(still, on_ranks):
    for whole, divided in on_ranks(2, _counts, still):
        assert whole == divided


def test_blocks_of_a_wider_teacher_cannot_run_in_the_student(still, runs, tmp_path):
    settings = ["method=borrows", "parallel.nproc=2", "teacher.tensor=2"]
    with pytest.raises(ConfigError, match=r"2 processes share the teacher and 1 the student"):
        runs.train(still, tmp_path / "refused", "teacher", settings)


SHORT = ["method=pkd+soft", "training.steps=2"]
SHARED = {
    "divided": ["parallel.tensor=2", "teacher.tensor=1"],
    "wide": ["teacher.tensor=2", "teacher.placement=offload"],
    "waiting": ["teacher.placement=zero3"],
}


@pytest.mark.exhaustive
def test_models_that_no_process_holds_alone_are_compared_by_all(still, on_ranks, runs, tmp_path):
    runs.train_and_conclude(still, tmp_path, [("alone", "teacher", SHORT)])
    cases = [(name, "teacher", SHORT + settings) for name, settings in SHARED.items()]
    on_ranks(2, runs.train_and_conclude, still, tmp_path, cases)
    expected = json.loads((tmp_path / "alone" / "results.json").read_text())
    for name in SHARED:
        found = json.loads((tmp_path / name / "results.json").read_text())
        for mine, theirs in zip(found["rows"], expected["rows"], strict=True):
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
            assert (mine["parameters"], mine["bytes"]) == (theirs["parameters"], theirs["bytes"])
            assert mine["milliseconds"] is None
            assert theirs["milliseconds"] > 0
        _same_predictions(tmp_path / name, tmp_path / "alone")


def _same_predictions(one, other):
    """Check that two runs say the same of each row."""
    mine, theirs = (Predictions.read(run / "predictions") for run in (one, other))
    assert mine.rows.equals(theirs.rows)
    assert list(mine.models) == ["student", "teacher"]
    for file, table in mine.models.items():
        assert table["prediction"].equals(theirs.models[file]["prediction"])
        losses = [each["loss"].to_pylist() for each in (table, theirs.models[file])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)
