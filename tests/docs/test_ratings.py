"""The example of a kind of task from a plugin."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gkd-kind-ratings"


@pytest.fixture
def installed(install):
    """A folder with the plugin, as `pip install --target` leaves it."""
    return install("gkd-kind-ratings", "ratings")


def test_it_is_listed_with_its_origin(gkd, installed):
    done = gkd("kinds", "ratings", PYTHONPATH=_path(installed))
    assert done.returncode == 0, done.stderr
    assert "gkd-kind-ratings 0.1.0" in done.stdout
    assert "Cohen's kappa" in done.stdout


@pytest.mark.exhaustive
def test_its_own_tests_pass(installed):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", EXAMPLE / "tests"],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
        env=os.environ | {"PYTHONPATH": _path(installed)},
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ratings_are_distilled(gkd, world, installed, tmp_path):
    draw = random.Random(0)
    words = ["bad", "fine", "great"]
    for name, count in (("train", 64), ("validation", 32)):
        rows = [{"text": f"the movie was {words[n % 3]}", "label": n % 3 + 1} for n in range(count)]
        draw.shuffle(rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *("--data", tmp_path / "train.jsonl", "--set", "task.kind=ratings"),
        *("--set", f"task.validation={tmp_path / 'validation.jsonl'}"),
        *("--set", "task.max_length=16", "--set", "training.lr=3e-3"),
        *("--set", "training.epochs=20", "--set", "output.tensorboard=false"),
    ]
    runs = (
        ("teacher", "--method", "hard", "--student", world / "lm-teacher"),
        ("student", "--method", "pkd+soft+hard", "--teacher", "teacher/student"),
    )
    for output, *flags in runs:
        path = _path(installed)
        done = gkd("run", *flags, *settings, "--output", output, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "student" / "results.json").read_text())
    assert found["metric"] == "kappa"
    assert found["rows"][-1]["metrics"]["kappa"] > 0.8


def _path(site):
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
