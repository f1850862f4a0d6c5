"""Text that models write during training is the same for every layout, and in a resumed run."""

from __future__ import annotations

import json
import shutil

import pytest

MAX_NEW = 8
CASE = (
    "lm-decoder",
    [
        *("task.kind=causal-lm", "method=soft", "training.steps=6"),
        *("rollout.engine=greedy", "rollout.student=0.7", "rollout.teacher=0.2"),
        *("rollout.prompt_tokens=5", f"rollout.max_new_tokens={MAX_NEW}"),
    ],
)
END = "movie"
"""A word that the student often writes, as the end token."""


def _with(*settings):
    teacher, given = CASE
    return teacher, [*given, *settings]


@pytest.fixture(scope="module")
def ending(world, tmp_path_factory):
    """The world, with a tokenizer that has an end token."""
    folder = tmp_path_factory.mktemp("ending") / "world"
    shutil.copytree(world, folder)
    config = folder / "lm-decoder" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": END}))
    return folder


def _together(found):
    """Return the texts of each run over all ranks."""
    return [
        {key: text for texts in run for key, text in texts.items()}
        for run in zip(*found, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(ending, runs, tmp_path_factory):
    """The folder of a run of one process, and its texts."""
    folder = tmp_path_factory.mktemp("alone")
    (texts,) = runs.train_noting_texts(ending, folder, [("run", *CASE)])
    return folder / "run", texts


def test_rows_are_of_all_sources_and_of_different_lengths(alone):
    _, texts = alone
    assert {source for source, *_ in texts.values()} == {0, 1, 2}
    written = {count for source, _, count in texts.values() if source == 1}
    assert MAX_NEW in written
    assert len(written) > 2, "the end token ends some rows early"


LAYOUTS = {
    "data": (),
    "tensor": ("parallel.tensor=2",),
    "zero2": ("parallel.zero=2",),
    "zero3": ("parallel.zero=3",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, LAYOUTS),
        pytest.param(
            4,
            {"both": ("parallel.tensor=2", "parallel.zero=1", "training.accumulation=2")},
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_every_layout_writes_and_learns_the_same(
    ending, alone, on_ranks, runs, tmp_path, ranks, layouts
):
    cases = [(name, *_with(*settings)) for name, settings in layouts.items()]
    found = on_ranks(ranks, runs.train_noting_texts, ending, tmp_path, cases)
    folder, texts = alone
    for (name, *_), written in zip(cases, _together(found), strict=True):
        assert written == texts, name
        runs.assert_equal(tmp_path / name, folder)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_rank_without_a_row_to_write_takes_part(ending, on_ranks, runs, tmp_path):
    case = _with("training.batch_size=3", "rollout.student=0.3", "rollout.teacher=0")
    (expected,) = runs.train_noting_texts(ending, tmp_path, [("alone", *case)])
    cases = [("zero3", *_with(*case[1][len(CASE[1]) :], "parallel.zero=3"))]
    found = on_ranks(4, runs.train_noting_texts, ending, tmp_path, cases)
    assert _together(found) == [expected]
    runs.assert_equal(tmp_path / "zero3", tmp_path / "alone")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_logits_of_a_divided_vocabulary_stay_divided(ending, alone, on_ranks, runs, tmp_path):
    cases = [("tensor", *_with("parallel.tensor=2"))]
    on_ranks(2, runs.train_on_shares, ending, tmp_path, cases)
    runs.assert_equal(tmp_path / "tensor", alone[0])


@pytest.mark.exhaustive
def test_a_resumed_run_writes_the_same(ending, on_ranks, runs, tmp_path):
    settings = ("parallel.tensor=2", "method=minilm+soft", "training.steps=8")
    on_ranks(2, runs.train, ending, tmp_path / "whole", *_with(*settings))
    on_ranks(2, runs.train, ending, tmp_path / "resumed", *_with(*settings), 6)
    on_ranks(2, runs.train, ending, tmp_path / "resumed", *_with(*settings))
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")


MIXED = (
    *("method=minillm", "rollout.engine=generate", "rollout.teacher=0", "rollout.mixture=0.3"),
    "minillm.lm_weight=0.5",
)
"""Every token of the student is drawn together with the teacher, and weighed by importance."""

OWN = ("method=opd", "rollout.engine=generate", "rollout.teacher=0")
"""How likely the student's tokens were is compared with a pass of training, and weighs them."""


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("drawn", [MIXED, OWN], ids=["mixed", "own"])
def test_every_layout_draws_and_weighs_the_same(ending, on_ranks, runs, tmp_path, drawn):
    (expected,) = runs.train_noting_texts(ending, tmp_path, [("alone", *_with(*drawn))])
    cases = [(name, *_with(*drawn, *settings)) for name, settings in LAYOUTS.items()]
    found = on_ranks(2, runs.train_noting_texts, ending, tmp_path, cases)
    for (name, *_), written in zip(cases, _together(found), strict=True):
        assert written == expected, name
        runs.assert_equal(tmp_path / name, tmp_path / "alone")


@pytest.mark.parametrize("drawn", [MIXED, OWN], ids=["mixed", "own"])
def test_a_resumed_run_draws_and_weighs_the_same(ending, runs, tmp_path, drawn):
    runs.train(ending, tmp_path / "whole", *_with(*drawn))
    runs.train(ending, tmp_path / "resumed", *_with(*drawn), 4)
    runs.train(ending, tmp_path / "resumed", *_with(*drawn))
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")
