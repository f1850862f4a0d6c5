"""An installed engine, from the command line: a run that is killed goes on as if it never was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the sampling engine for the processes of a test."""
    site = tmp_path / "site"
    info = site / "gkd_rollout_sampling-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGINS / "sampling.py", site)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gkd-rollout-sampling\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[gkd]\nsampling = sampling\n")
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("installed")
def test_a_killed_run_writes_what_it_would_have_written(gkd, kill, world, tmp_path):
    settings = {
        "task.kind": "causal-lm",
        "task.validation": world / "corpus.txt",
        "task.max_length": 32,
        "training.steps": 6,
        "training.checkpoint_every": 2,
        "training.log_every": 1,
        "output.reuse": "false",
        "rollout.engine": "sampling",
        "rollout.cooling": 0.8,
        "rollout.student": "linear(0 -> 1)",
        "rollout.prompt_tokens": 4,
        "rollout.max_new_tokens": 8,
    }
    arguments = [
        *("run", "--teacher", world / "lm-decoder", "--student-layers", 2, "--method", "soft"),
        *("--data", world / "corpus.txt"),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]
    done = gkd(*arguments, "--output", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kill("distil", 3, *arguments, "--output", tmp_path / "killed")
    done = gkd("run", "--resume", "--output", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    whole, killed = (_outcome(tmp_path / name) for name in ("whole", "killed"))
    assert killed[0] == whole[0]
    assert all(torch.equal(killed[1][name], weight) for name, weight in whole[1].items())


def _outcome(folder):
    """Return the losses of each step, and the student."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["soft"] for line in lines if "soft" in line}
    return losses, load_file(folder / "student" / "model.safetensors")
