"""One study of nine tiny cells, for clusters."""

from __future__ import annotations

import json
import os
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
baseline = false
teacher = "{world}/teacher"
student.layers = 2
training = {{ steps = 6, batch_size = 16, lr = 1e-3, checkpoint_every = 2 }}
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

    def start(self, *arguments, command=("run", "nine.toml")):
        line = [sys.executable, "-m", "gkd_core.cli", "study", *command, *arguments]
        return subprocess.Popen(line, cwd=self.folder, env=self.environment)

    def run(self, *arguments, **more):
        return self.start(*arguments, **more).wait()

    @property
    def environment(self):
        return os.environ | {"GKD_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    @property
    def cells(self):
        listed = json.loads((self.path / "cells.json").read_text())["cells"]
        return {cell["name"]: cell for cell, _ in listed}

    @property
    def finished(self):
        return [p.parent.name for p in self.path.glob("cells/*/report.html")]

    def attempts(self):
        return {
            path.stem: json.loads(path.read_text()) for path in self.path.glob("attempts/*.json")
        }

    def qualities(self):
        """The metrics of each cell's student."""
        results = self.path.glob("cells/*/results.json")
        return {p.parent.name: json.loads(p.read_text())["rows"][-1]["metrics"] for p in results}

    def wait_for(self, condition, seconds=240):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"not within {seconds} s: {self.attempts()}"
            time.sleep(0.2)


@pytest.fixture
def nine_cells(world, tmp_path):
    (tmp_path / "nine.toml").write_text(STUDY.format(world=world))
    return NineCells(tmp_path)
