"""Runs of version 0.2 go on with every later version, or are refused with what has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from endings import STUDENT, assert_same_ending, assert_same_student
from tests import forked

RUNS = Path(__file__).parent / "v0.2"
CHANGED = "these inputs differ: code of gkd-methods-"
"""What refuses a run of a package under development: its code changes, its version does not."""


@pytest.fixture
def runs(invoke, tmp_path):
    """The folder with the runs, which is the current one; `cache` in it is the cache."""
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    return tmp_path


WEIGHED = "written"
"""The run whose text has importance weights since: they are 1, but for rounding."""


def _assert_goes_on(done, run, stage):
    assert done == 0
    assert f"stage {stage}: steps 4 to 6" in (run / "log.txt").read_text()
    assert_same_student(RUNS, run, RUNS / "ended" / run.name, run.name != WEIGHED)
    assert_same_ending(run, RUNS / "ended" / run.name, stage)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("interrupted", "distil"), ("stages", "second"), ("written", "distil")],
)
def test_an_interrupted_run_goes_on(runs, invoke, name, stage):
    run = runs / "killed" / name
    before = (run / "config.toml").read_bytes()
    done = invoke("run", "--resume", "--output", f"killed/{name}")
    if done.code != 0:
        assert done.code == 2
        assert CHANGED in done.err
        assert (run / "config.toml").read_bytes() == before
        assert not (run / STUDENT).exists()
        done = invoke("run", "--resume", "--accept-changes", "--output", f"killed/{name}")
    _assert_goes_on(done.code, run, stage)


@pytest.mark.slow
def test_an_interrupted_run_of_two_ranks_goes_on(runs):
    command = ("run", "--resume", "--accept-changes", "--nproc", 2, "--output", "killed/ranks")
    for done in forked.run_ranks(2, *command, cwd=runs, GKD_CACHE=str(runs / "cache")):
        assert done.returncode == 0, done.stderr
    _assert_goes_on(done.returncode, runs / "killed/ranks", "distil")


def test_a_changed_row_is_named_before_anything_is_trained(runs, invoke):
    rows = runs / "world/train.jsonl"
    rows.write_text(rows.read_text().replace("even", "odd", 1))
    done = invoke("run", "--resume", "--output", "killed/interrupted")
    assert done.code == 2
    assert "training rows: was 24, SHA-256 " in done.err
    assert not (runs / "killed/interrupted" / STUDENT).exists()


def test_a_finished_run_is_left_as_it_is(runs, invoke):
    finished = runs / "ended/finished"
    before = (finished / STUDENT).read_bytes()
    done = invoke("run", "--resume", "--output", "ended/finished")
    assert done.code == 0, done.err
    assert (finished / STUDENT).read_bytes() == before
    log = (finished / "log.txt").read_text()
    for stage in ("baseline", "distil"):
        assert f"stage {stage} is finished already" in log
