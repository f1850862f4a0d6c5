"""A teacher that follows the student, with prompts of its own, does so on several ranks as in one.

Each rank has whole weights under ZeRO 1 and 2, and the same shards of both under tensor
parallelism.
"""

from __future__ import annotations

import json

import pytest

WORDS = ("movie", "plot", "cast", "film", "end", "start", "story", "actor")


@pytest.fixture(scope="module")
def case(world, tmp_path_factory):
    """The teacher and the settings of a run by the method `sdft`."""
    told = tmp_path_factory.mktemp("told") / "told.jsonl"
    rows = [{"prompt": f"the {word} was", "response": f"{word} and good"} for word in WORDS]
    told.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        *("task.kind=causal-lm", f"task.train={told}", f"task.validation={told}"),
        *("method=sdft", "student.layers=all", "teacher.follow=0.5"),
        *("teacher.prompt={prompt} is {answer} :", "training.steps=4"),
        *("rollout.engine=generate", "rollout.student=1", "rollout.max_new_tokens=5"),
        "rollout.prompt_tokens=8",
        *("training.batch_size=4", "training.checkpoint_every=2"),
    )
    return "lm-decoder", settings


@pytest.fixture(scope="module")
def alone(world, case, runs, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    runs.train(world, folder, *case)
    return folder


def test_a_teacher_that_stays_where_it_is_teaches_something_else(
    world, case, alone, runs, tmp_path
):
    """Runs that are equal below are so because their teachers have moved alike."""
    teacher, settings = case
    still = [setting for setting in settings if not setting.startswith("teacher.follow")]
    runs.train(world, tmp_path / "still", teacher, still)
    with pytest.raises(AssertionError):
        runs.assert_equal(tmp_path / "still", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        ("parallel.tensor=2", "parallel.zero=2"),
        pytest.param(("parallel.zero=0", "parallel.zero=1"), marks=pytest.mark.exhaustive),
    ],
    ids=["divided", "copied"],
)
def test_layouts_train_and_follow_as_one_process_does(
    world, case, alone, on_ranks, runs, tmp_path, layouts
):
    teacher, settings = case
    cases = [(layout, teacher, (*settings, layout)) for layout in layouts]
    on_ranks(2, runs.train_all, world, tmp_path, cases)
    for layout in layouts:
        runs.assert_equal(tmp_path / layout, alone)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_layout_may_change_between_checkpoints(world, case, alone, on_ranks, runs, tmp_path):
    teacher, settings = case
    on_ranks(2, runs.train, world, tmp_path / "run", teacher, (*settings, "parallel.tensor=2"), 3)
    on_ranks(2, runs.train, world, tmp_path / "run", teacher, (*settings, "parallel.zero=1"))
    runs.assert_equal(tmp_path / "run", alone)


def test_what_has_no_whole_shards_is_refused_before_anything_starts(world, case, runs, tmp_path):
    teacher, settings = case
    refused = {
        "zero": ("parallel.zero=3",),
        "tensor": ("parallel.nproc=2", "parallel.tensor=2", "teacher.tensor=1"),
    }
    cases = [(name, teacher, (*settings, *own)) for name, own in refused.items()]
    found = runs.fail_all(world, tmp_path, cases)
    assert "weights are sharded by parallel.zero = 3. Use at most 2" in found["zero"]
    assert "divided over 1 processes and the student over 2" in found["tensor"]
    assert not list(tmp_path.glob("*/stages"))
