"""`gkd new-run`: a run file that says what was found, and runs."""

from __future__ import annotations

import json
import tomllib

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.distillation.run_file import _without_controls
from gkd_core.runs.resolved import resolve_run


def test_it_says_what_it_found_and_the_file_is_understood(invoke, world, tmp_path):
    done = invoke("new-run", "--teacher", world / "teacher", "--data", world / "train.jsonl")
    assert done.code == 0, done.err
    text = (tmp_path / "run.toml").read_text()
    for said in (
        "bert: 4 blocks of width 32, 4 heads",
        "evenly spaced: 2 of 4",
        "to train on, ",
        "Classes: neg (",
        "half have at most ",
        "steps per epoch",
    ):
        assert said in text
    found = tomllib.loads(text)
    assert found["method"] == "soft+hard"
    assert found["student"] == {"layers": 2}
    assert found["task"]["kind"] == "classification"
    assert found["task"]["max_length"] == 16
    assert found["training"]["batch_size"] == 8
    assert resolve_run([tmp_path / "run.toml"]).warnings == ()
    assert max(map(len, text.replace(str(world), "").splitlines())) <= 110


def test_a_teacher_of_two_blocks_gets_a_method_that_fits(invoke, world, tmp_path):
    teacher = AutoModelForSequenceClassification.from_pretrained(world / "teacher")
    teacher.bert.encoder.layer = teacher.bert.encoder.layer[:2]
    teacher.config.num_hidden_layers = 2
    teacher.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(tmp_path / "small")
    done = invoke("new-run", "--teacher", tmp_path / "small", "--data", world / "train.jsonl")
    assert done.code == 0, done.err
    assert tomllib.loads((tmp_path / "run.toml").read_text())["method"] == "soft+hard"
    assert invoke("explain", tmp_path / "run.toml").code == 0


def test_a_label_cannot_end_its_comment():
    assert _without_controls("# Classes: a\nb = 1\u2028.") == r"# Classes: a\nb = 1\u2028."
    assert _without_controls('path = "x"') == 'path = "x"'


@pytest.mark.exhaustive
def test_the_file_runs(invoke, world, tmp_path):
    rows = tmp_path / "conversations.jsonl"
    lines = [json.dumps({"prompt": f"the movie {n}", "completion": "good"}) for n in range(30)]
    rows.write_text("\n".join(lines))
    cases = (
        (world / "teacher", world / "train.jsonl"),
        (world / "lm-decoder", world / "corpus.txt"),
        (world / "lm-teacher", world / "corpus.txt"),
        (world / "lm-decoder", rows),
    )
    for number, (teacher, data) in enumerate(cases):
        file = f"{number}.toml"
        done = invoke("new-run", "--teacher", teacher, "--data", data, "--output", file)
        assert done.code == 0, done.err
        done = invoke("run", file, "--set", "training.epochs=1", "--no-baseline")
        assert done.code == 0, done.err


def test_a_file_that_exists_is_kept(invoke, world, tmp_path):
    (tmp_path / "run.toml").write_text("mine")
    done = invoke("new-run", "--teacher", world / "teacher", "--data", world / "train.jsonl")
    assert done.code == 2
    assert "run.toml exists; name another file with --output" in done.err
    assert (tmp_path / "run.toml").read_text() == "mine"
