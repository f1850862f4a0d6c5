"""One study of nine tiny cells, and a cache of four shards, for clusters."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest

STUDY = """
title = "Nine tiny cells"

[axes]
method = ["kd", "soft", "hard"]
seed = [1, 2, 3]

[settings]
teacher = "{world}/teacher"
student.layers = 2
training = {{ steps = 9, batch_size = 16, lr = 1e-2, checkpoint_every = 3 }}
output.tensorboard = false

[settings.task]
train = "{world}/train.jsonl"
validation = "{world}/validation.jsonl"
test = "{world}/test.jsonl"
max_length = 16
"""


class NineCells:
    """The study in a folder of its own, and what has become of it."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "studies" / "nine"

    def start(self, *arguments, command=("run", "nine.toml"), **more):
        line = [sys.executable, "-m", "gkd_core.cli", "study", *command, *arguments]
        return subprocess.Popen(line, cwd=self.folder, env=self.environment, **more)

    def run(self, *arguments, **more):
        return self.start(*arguments, **more).wait()

    @property
    def environment(self):
        return os.environ | {"GKD_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    @property
    def finished(self):
        return {p.parent.name for p in self.path.glob("cells/*/report.html")}

    def attempts(self):
        return {
            path.stem: json.loads(path.read_text()) for path in self.path.glob("attempts/*.json")
        }

    def predictions(self):
        """What each cell's student predicts, to the last digit."""
        found = self.path.glob("cells/*/predictions/student.parquet")
        return {path.parents[1].name: path.read_bytes() for path in found}

    def assert_equal(self, expected):
        """Every cell has one result, that of `expected`, and nothing is left over."""
        listed = json.loads((self.path / "cells.json").read_text())["cells"]
        assert self.finished == {cell["name"] for cell, _ in listed} == set(expected.finished)
        assert self.predictions() == expected.predictions()
        assert {each["status"] for each in self.attempts().values()} == {0}
        assert not list(self.path.glob("attempts/.*.lease"))

    def wait_for(self, condition, seconds=600):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"not within {seconds} s: {self.attempts()}"
            time.sleep(0.2)


def _nine_cells(folder, world, study):
    (folder / "nine.toml").write_text(study.format(world=world))
    return NineCells(folder)


@pytest.fixture
def nine_cells(world, tmp_path):
    return _nine_cells(tmp_path, world, STUDY)


@pytest.fixture
def three_cells(world, tmp_path):
    """The same with one seed."""
    return _nine_cells(tmp_path, world, STUDY.replace("[1, 2, 3]", "[1]"))


@pytest.fixture(scope="session")
def locally(world, tmp_path_factory):
    """The study as it comes out on this machine."""
    made = _nine_cells(tmp_path_factory.mktemp("locally"), world, STUDY)
    assert made.run("--threads", "1") == 0
    return made


class FourShards:
    """A cache of answers in a folder of its own, and what has become of it."""

    def __init__(self, folder, world):
        self.folder = folder
        self.path = folder / "answers"
        draw, words = random.Random(1), (world / "corpus.txt").read_text().split()
        texts = (" ".join(draw.choices(words, k=8)) for _ in range(4000))
        (folder / "corpus.txt").write_text("".join(f"{text}\n" for text in texts))
        settings = ("--set", "task.kind=causal-lm", "--set", "task.max_length=32")
        self._about = ("--teacher", world / "lm-decoder", "--data", "corpus.txt", *settings)

    def start(self, *arguments):
        line = [sys.executable, "-m", "gkd_core.cli", "cache", *map(str, self._about)]
        own = os.environ | {"GKD_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        command = [*line, "--output", "answers", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=own)

    @property
    def is_finished(self):
        """Whether the manifest names all shards."""
        manifest = self.path / "manifest.json"
        return manifest.exists() and len(json.loads(manifest.read_text())["parts"]) == 4

    def is_being_written(self):
        return any(self.path.glob(".shard-*.lease"))

    def answers(self):
        found = (*self.path.glob("*.json"), *self.path.glob("*.safetensors"))
        return {path.name: path.read_bytes() for path in found}


@pytest.fixture
def four_shards(world, tmp_path):
    return FourShards(tmp_path, world)


@pytest.fixture(scope="session")
def written_here(world, tmp_path_factory):
    """The files of the cache as one process writes it."""
    made = FourShards(tmp_path_factory.mktemp("here"), world)
    assert made.start().wait(240) == 0
    return made.answers()


def _wait_for(condition, seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def wait_for():
    """Wait until a condition holds: `wait_for(condition, seconds)`."""
    return _wait_for
