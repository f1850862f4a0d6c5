"""Every gkd command of the tutorials runs, in order, in one folder."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorial").glob("*.md"))
MODELS = {"DIR": "teacher", "PRETRAINED": "lm-teacher", "LARGE": "lm-decoder"}
QUICK = ("--set", "training.steps=2", "--set", "task.max_length=32", "--no-baseline")


@pytest.fixture
def place(world, tmp_path):
    """A folder with the models and rows that the tutorials name."""
    for name, model in MODELS.items():
        shutil.copytree(world / model, tmp_path / name)
    shutil.copy(world / "train.jsonl", tmp_path)
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    with (tmp_path / "reviews.csv").open("w") as file:
        csv.writer(file).writerows([("text", "label"), *((r["text"], r["label"]) for r in rows)])
    chats = ({"prompt": row["text"], "response": row["label"]} for row in rows)
    (tmp_path / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chats))
    return tmp_path


def quickly(words):
    """Return a command of which a run is short, with models and rows if it names none."""
    small = ["2" if last == "--student-layers" else word for last, word in pairwise(["", *words])]
    if small[0] != "run":
        return small
    named = {"--teacher", "--student"} & {*small} or any(word.endswith(".toml") for word in small)
    given = () if named else ("--teacher", "DIR", "--data", "train.jsonl", "--student-layers", "2")
    left_out = ("student.hidden_size=64", "--set", "--baseline")
    kept = [f for w in small if w not in left_out for f in (("--set", w) if "=" in w else (w,))]
    return [*kept, *given, *QUICK]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_its_commands_run(tutorial, fenced, invoke, example):
    lines = (line for block in fenced(tutorial, "console") for line in block.text.splitlines())
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("$ gkd ")]
    assert commands
    for words in commands:
        done = invoke(*quickly(words))
        assert done.code == 0, f"{shlex.join(words)}: {done.err}"
