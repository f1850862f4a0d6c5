"""Tensors of a teacher that are kept or stored are the same on several ranks as in one process."""

from __future__ import annotations

import pytest

KEPT = {
    "maps": ["method=minilm+hard", "teacher.keep=disk"],
    "disk": ["method=pkd+soft", "teacher.keep=disk"],
    "memory": ["method=distilbert+hard", "teacher.keep=memory"],
}
LAYOUTS = {
    "zero 2": ["parallel.zero=2"],
    "tensor": ["parallel.tensor=2 teacher.tensor=1"],
    "zero 0, 3": ["parallel.zero=0", "parallel.zero=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layouts", "cases"),
    [
        pytest.param("tensor", ["maps"], id="tensor"),
        *(pytest.param(name, KEPT, marks=pytest.mark.exhaustive, id=name) for name in LAYOUTS),
    ],
)
def test_layouts_train_as_one_process_does(
    still, on_ranks, runs, tmp_path, monkeypatch, layouts, cases
):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    given = [(name, "teacher", KEPT[name]) for name in cases]
    runs.assert_layouts_equal(still, tmp_path, given, LAYOUTS[layouts], on_ranks)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layouts", LAYOUTS)
def test_layouts_learn_from_stored_maps_as_one_process_does(
    still, on_ranks, runs, invoke, tmp_path, layouts
):
    splits = [f"task.{split}={still / split}.jsonl" for split in ("train", "validation")]
    settings = ["method=minilm+pkd+soft", "task.max_length=32", "student.layers=2", *splits]
    answers, given = tmp_path / "answers", [part for each in settings for part in ("--set", each)]
    about = ("--teacher", still / "teacher", *given, "--dtype", "fp32")
    done = invoke("cache", *about, "--output", answers)
    assert done.code == 0, done.err
    source = ["teacher.source=cache", f"teacher.source.path={answers}"]
    cases = [("stored", "teacher", [settings[0], *source])]
    runs.assert_layouts_equal(still, tmp_path, cases, LAYOUTS[layouts], on_ranks)


def test_what_a_divided_teacher_cannot_keep_is_refused_with_the_reason(world, runs, tmp_path):
    divided = ["parallel.nproc=2", "parallel.tensor=2"]
    cases = [
        ("disk", "teacher", ["method=soft", "teacher.keep=disk", *divided]),
        ("memory", "teacher", ["method=minilm", "teacher.keep=memory", *divided]),
        ("zero3", "teacher", ["method=soft", "teacher.keep=disk", "teacher.placement=zero3"]),
    ]
    found = runs.fail_all(world, tmp_path, cases)
    for name in ("disk", "zero3"):
        assert (
            "its weights are divided over processes, for which there is only 'memo" in found[name]
        )
    assert "and its weights are divided over processes. Set teacher.keep" in found["memory"]
    assert not list(tmp_path.glob("*/stages"))
