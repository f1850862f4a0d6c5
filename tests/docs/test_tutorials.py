"""Every gkd command of the tutorials runs, in order, in one folder."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorial").glob("*.md"))
QUICK = ("--set", "training.steps=2", "--set", "task.max_length=32", "--no-baseline")


@pytest.fixture
def place(world, tmp_path):
    """A folder with what the tutorials call DIR and train.jsonl."""
    shutil.copytree(world / "teacher", tmp_path / "DIR")
    shutil.copy(world / "train.jsonl", tmp_path)
    return tmp_path


def quickly(words):
    """Return a command of which a run is short and has the rows of the tests."""
    if words[0] != "run":
        return words
    given = () if "--teacher" in words else ("--teacher", "DIR", "--data", "train.jsonl")
    layers = () if "--student-layers" in words else ("--student-layers", "2")
    words = [word for word in words if word != "student.hidden_size=64" and word != "--set"]
    kept = [f for word in words for f in (("--set", word) if "=" in word else (word,))]
    return [*kept, *given, *layers, *QUICK]


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
