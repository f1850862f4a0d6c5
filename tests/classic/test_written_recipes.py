"""Recipes that train on text that models write: they resolve, say who writes, and run."""

from __future__ import annotations

import json

import pytest

from gkd_core.plugins import registry

RECIPES = {
    "distillm": ("soft", "more by the student when the validation loss rises"),
    "minillm": ("minillm", "0.5 of the rows by the student (with 0.2 of the teacher)"),
    "on-policy": ("soft", "0.5 of the rows by the student"),
    "opd": ("opd", "1 of the rows by the student"),
}
"""The method of each recipe, and who writes in each step."""


def test_each_method_that_needs_the_students_text_has_a_recipe():
    assert {n for n, method in registry().methods.items() if method.on_policy} <= RECIPES.keys()
    assert registry().recipes.keys() >= RECIPES.keys()


@pytest.fixture(scope="module")
def given(world):
    settings = {
        "task.validation": world / "corpus.txt",
        "task.max_length": 16,
        "training.steps": 2,
        "training.batch_size": 8,
        "training.log_every": 1,
        "output.reuse": "false",
        "rollout.prompt_tokens": 4,
        "rollout.max_new_tokens": 6,
    }
    pairs = (("--set", f"{name}={value}") for name, value in settings.items())
    models = ["--teacher", world / "lm-decoder", "--data", world / "corpus.txt"]
    return [*models, *(part for pair in pairs for part in pair)]


def test_sequence_level_distillation_has_the_teacher_write_first(invoke, given, tmp_path):
    given = [str(part).replace("rollout.", "writing.") for part in given]
    done = invoke("explain", "--recipe", "seqkd", *given)
    assert done.code == 0, done.err
    assert "writing    teacher first writes the answer to each prompt\n" in done.out
    assert "only writes, nothing reads it" in done.out
    done = invoke("run", "--recipe", "seqkd", *given, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert rows[-1]["name"] == "student, hard"
    (data,) = (tmp_path / "run/stages").glob("*/written.jsonl")
    written = [json.loads(line) for line in data.read_text().splitlines()]
    assert written
    assert all(len(row["text"].split()) <= 4 and row["target"] for row in written)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_and_says_who_writes(invoke, given, tmp_path, recipe):
    method, writer = RECIPES[recipe]
    if recipe == "minillm":  # only its last stage writes
        given = [str(part).replace("rollout.", "stages.policy.rollout.") for part in given]
    done = invoke("explain", "--recipe", recipe, *given)
    assert done.code == 0, done.err
    assert f"rollout generate writes {writer} rollout.engine" in " ".join(done.out.split())
    done = invoke("run", "--recipe", recipe, *given, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert rows[-1]["name"] == f"student, {'hard then ' * (recipe == 'minillm')}{method}"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    written = [line for line in lines if "rollout/tokens" in line]
    if recipe == "distillm":
        assert not written, "the share of the student begins at 0"
        return
    assert all(line["rollout/stale"] == 0 for line in written)
    assert [line["step"] for line in written] == [1, 2]
    compared = [line["rollout/mismatch"] for line in written if "rollout/mismatch" in line]
    assert len(compared) == (recipe == "opd"), "the other methods do not ask, or it is a mixture"
    assert all(0 < found < 1e-4 for found in compared)
    assert {line["stage"] for line in written} == {"policy" if recipe == "minillm" else "distil"}
    assert all(line["rollout/tokens"] == 6 for line in written)
    assert all(line["rollout/truncated"] == 1 for line in written), "the world has no end token"


@pytest.mark.parametrize("method", ["opd", "minillm"])
def test_without_text_of_the_student_its_methods_are_refused(invoke, given, method):
    models = given[: given.index("--set")]
    done = invoke("explain", "--method", method, *models, "--set", "task.kind=causal-lm")
    assert done.code == 2
    assert f"{method} learns from text that the student writes" in done.err
    assert "rollout.student=1" in done.err
