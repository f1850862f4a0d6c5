"""Answers that models write while a student trains: in the log, the metrics and the report."""

from __future__ import annotations

import json

import pytest

ROWS = [{"prompt": f"the {word} was", "response": f"{word} and good"} for word in
        ("movie", "plot", "cast", "film", "end", "start", "music", "style")]  # fmt: skip


@pytest.fixture
def told(tmp_path):
    path = tmp_path / "told.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def arguments(world, told):
    settings = ["task.kind=causal-lm", "task.max_length=32", "training.steps=2"]
    settings += ["training.batch_size=2", "training.evaluate_every=1"]
    shown = [part for setting in settings for part in ("--set", setting)]
    rows = ["--data", told, "--set", f"task.validation={told}"]
    return ["--teacher", world / "lm-decoder", "--student-layers", 1, "--method", "soft",
            *rows, *shown]  # fmt: skip


def test_models_write_side_by_side_at_every_evaluation(invoke, arguments, tmp_path):
    extra = ["--set", "samples.rows=3", "--set", "samples.new_tokens=4", "--set", "task.check=good"]
    done = invoke("run", *arguments, *extra, "--output", "run")
    assert done.code == 0, done.err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("prompt: the movie was") == 2  # once for each evaluation
    assert "  target: movie and good" in log
    written = [line for line in log.splitlines() if line.startswith("  teacher: ")]
    assert len(written) == 4
    assert len(set(written[:2])) == len(set(written[2:])) == len({*written})  # written once
    entries = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    evaluated = [entry for entry in entries if "validation/rouge_l" in entry]
    assert [entry["step"] for entry in evaluated] == [1, 2]
    assert all(0 <= entry["validation/check"] <= 1 for entry in evaluated)
    models = json.loads((tmp_path / "run/results.json").read_text())["rows"]
    assert all({"rouge_l", "exact_match", "check"} <= model["metrics"].keys() for model in models)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the models write" in page
    assert page.count("of 3 written answers") == len(models)


def test_samples_change_nothing_about_training(invoke, arguments, tmp_path):
    for name, extra in (("with", ["--set", "samples.rows=2"]), ("without", [])):
        done = invoke("run", *arguments, *extra, "--output", name, "--set", "output.reuse=false")
        assert done.code == 0, done.err
    with_them, without = (
        (tmp_path / name / "student/model.safetensors").read_bytes() for name in ("with", "without")
    )
    assert with_them == without


def test_samples_of_a_classifier_are_refused(invoke, world):
    given = ["run", "--teacher", world / "teacher", "--data", world / "train.jsonl"]
    done = invoke(*given, "--set", "samples.rows=2")
    assert done.code == 2
    assert "samples lets models write answers, but task.kind is classification" in done.err


def test_a_check_that_is_none_is_refused_when_the_run_is_planned(invoke, arguments):
    done = invoke("explain", *arguments, "--set", "task.check=(open")
    assert done.code == 2
    assert "task.check = '(open' is neither a function" in done.err
