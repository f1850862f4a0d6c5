"""Runs that a signal stops, and runs of which another process has taken the directory."""

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file

from gkd_core.lease import hold
from gkd_core.training import loop

OFTEN = [
    *("--set", "training.checkpoint_every=2", "--set", "training.log_every=1"),
    *("--method", "pkd+soft", "--no-baseline"),
]


@pytest.fixture
def before_step(monkeypatch):
    """`before_step(4, act)`: have something happen before the fourth step."""

    def _before_step(number, act):
        steps = iter(range(1, 100))

        def step(*arguments, real=loop.train_step):
            if next(steps) == number:
                act()
            return real(*arguments)

        monkeypatch.setattr(loop, "train_step", step)

    return _before_step


def _checkpoints(folder):
    return sorted(path.name for path in (folder / "stages" / "distil" / "checkpoints").iterdir())


def _logged(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss/total" in line]


def test_signal_ends_the_step_and_the_run_goes_on_as_if_never_stopped(
    invoke, settings, tmp_path, before_step
):
    before_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    done = invoke("run", *settings, *OFTEN, "--output", "out")
    assert done.code == 75
    assert done.err == (
        "Error: stopped by SIGTERM after step 3 of stage distil. Continue with: gkd run --resume "
        "--output out\n"
    )
    assert _checkpoints(tmp_path / "out") == ["step-00000002", "step-00000003"]
    shutil.copytree(tmp_path / "out", tmp_path / "hurt")
    newest = tmp_path / "hurt" / "stages" / "distil" / "checkpoints" / "step-00000003"
    os.truncate(newest / "optimizer.safetensors", 100)
    for name in ("out", "hurt"):
        assert invoke("run", "--resume", "--output", name).code == 0
    log = (tmp_path / "hurt" / "log.txt").read_text()
    assert "step-00000003 is damaged (step-00000003: optimizer.safetensors: was " in log
    assert "): continuing from step-00000002\n" in log
    before_step(0, None)
    assert invoke("run", *settings, *OFTEN, "--output", "whole").code == 0
    students = (tmp_path / name / "student/model.safetensors" for name in ("whole", "out", "hurt"))
    whole, *others = map(load_file, students)
    assert all((other[name] == whole[name]).all() for other in others for name in whole)


def test_run_whose_directory_was_taken_writes_nothing_more(invoke, settings, tmp_path, before_step):
    def take():
        marker = tmp_path / ".out.lease"
        text = marker.read_text()
        marker.unlink()
        token = next(line for line in text.splitlines() if line.startswith("token="))
        marker.write_text(text.replace(token, "token=other"))

    before_step(4, take)
    done = invoke("run", *settings, *OFTEN, "--output", "out")
    assert done.code == 2
    assert done.err.startswith(f"Error: out has passed to process {os.getpid()} on ")
    assert "Continue" not in done.err
    assert _checkpoints(tmp_path / "out") == ["step-00000002"]
    assert _logged(tmp_path / "out") == [1, 2, 3]


def test_held_directory_is_refused_with_its_holder(invoke, settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.toml").write_text("")
    with hold(tmp_path / "out"):
        for mode in (["--overwrite", *settings], ["--resume"]):
            done = invoke("run", *mode, "--output", "out")
            assert done.code == 2
            assert f"out is being written by process {os.getpid()} on " in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.toml"]
