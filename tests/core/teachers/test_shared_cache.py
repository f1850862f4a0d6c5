"""A cache of answers in a place that cannot be written, and while several processes use it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import contextmanager

import pytest
from tests import forked

FEW = """
from gkd_core.runs import answer_division
answer_division.ROWS, answer_division.BATCHES = 16, 2
"""
"""Shards so small that there are several."""

WAITS = """
import sys, time
from pathlib import Path
from gkd_core.cli import main
{module}

name, *arguments = sys.argv[1:]
stock = {function}
calls = []

def waits(*given):
    calls.append(given)
    if len(calls) == 2:
        Path(f"{{name}}.waits").touch()
        while not Path(f"{{name}}.goes").exists():
            time.sleep(0.02)
    return stock(*given)

{function} = waits
main(arguments)
"""
READS = WAITS.format(module="from gkd_core.training import loop", function="loop.train_step")
WRITES = FEW + WAITS.format(
    module="from gkd_core.teachers.answer_shard import AnswerShard", function="AnswerShard.save"
)
"""The command line, which waits before its second step, or before its second shard."""


@pytest.fixture
def about(world):
    """What a cache and its runs are about."""
    return [
        *("--teacher", world / "lm-decoder", "--data", world / "train.jsonl"),
        *("--set", "task.kind=causal-lm", "--set", "task.text=text", "--set", "task.max_length=32"),
    ]


@pytest.fixture
def run(about):
    """Arguments of a run of two steps on a cache."""
    return [
        *(
            "run",
            *about,
            "--method",
            "soft",
            "--student-layers",
            1,
            "--set",
            "training.steps=2",
            "--no-baseline",
        ),
        *("--set", "output.reuse=false", "--teacher-cache", "answers", "--output"),
    ]


@pytest.fixture
def start(tmp_path):
    """Start the command line, which waits under a name; wait for that: `start("a", CODE, ...)`."""

    def _start(name, code, *arguments):
        said = [tmp_path / f"{name}.{stream}" for stream in ("out", "err")]
        environment = {"GKD_CACHE": str(tmp_path / "cache"), "COLUMNS": "300"}
        process = forked.start(code, name, *arguments, cwd=tmp_path, said=said, **environment)
        while not (tmp_path / f"{name}.waits").exists():
            assert process.is_alive(), said[1].read_text()
            time.sleep(0.02)
        return process

    yield _start
    for waits in tmp_path.glob("*.waits"):
        waits.with_suffix(".goes").touch()


@pytest.fixture
def ended(tmp_path):
    """Let a process go on, and return its exit status."""

    def _ended(name, process):
        (tmp_path / f"{name}.goes").touch()
        process.join()
        return process.exitcode

    return _ended


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_runs_read_a_cache_while_it_is_read_and_mended(start, ended, gkd, about, run, tmp_path):
    answers, write = tmp_path / "answers", ["cache", *about, "--output", "answers"]
    writer = start("writer", WRITES, *write)
    early = gkd(*run, "early")
    assert early.returncode == 2
    assert "is not finished. answers: 1 of 3 shards are there, 1 being written" in early.stderr
    assert ended("writer", writer) == 0
    before, runs = files(answers), {name: start(name, READS, *run, name) for name in ("a", "b")}
    for mends in (False, True):
        if mends:
            next(answers.glob("shard-000001-*")).unlink()
        changed = _changed(answers)
        again = forked.run(FEW + forked.GKD, *write, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert files(answers) == before
        assert (_changed(answers) != changed) == mends
    assert [ended(name, process) for name, process in runs.items()] == [0, 0]
    students = [tmp_path / name / "student" / "model.safetensors" for name in runs]
    assert students[0].read_bytes() == students[1].read_bytes()


def _changed(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}


@contextmanager
def read_only(folder):
    """Make a folder one that cannot be written: by its mode or, for root, as a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    for line in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *line], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_cache_in_a_read_only_place_is_read_and_not_mended(invoke, about, run, tmp_path):
    answers, write = tmp_path / "answers", ["cache", *about, "--output", "answers"]
    assert invoke(*write).code == 0
    with read_only(answers):
        with pytest.raises(OSError, match=r"Read-only|denied"):
            (answers / "new").touch()
        done = invoke(*run, "out")
        assert done.code == 0, done.err
        done = invoke(*write)
        assert done.code == 0, done.err
    next(answers.glob("shard-*")).unlink()
    with read_only(answers):
        done = invoke(*write)
        assert done.code == 1
        assert re.search(r"shard-000000: .*(Read-only|denied).*Choose another place", done.err)
