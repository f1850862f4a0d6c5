"""Trials of a campaign: run `gkd` with a fault, go on as it says, and compare the students."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress

from safetensors.torch import load_file
from tests import forked

GKD = "import sys; from tests.faults.faulty import main; main(*sys.argv[1:])"


def run(folder, *arguments, at=0, kind="kill"):
    """Run `gkd` in a folder, with a fault at a write; its status, what it said, its writes."""
    counted = folder / "writes.txt"
    faults = (counted, folder / "out", at, kind)
    ended = forked.run(GKD, *faults, *arguments, cwd=folder, GKD_CACHE=str(folder / "cache"))
    writes = int(counted.read_text()) if counted.exists() else 0
    return ended.returncode, ended.stdout + ended.stderr, writes


def run_killed(folder, *arguments, after, ranks=1, victims=(0,)):
    """Run `gkd` in a folder, on several ranks, and kill some after a number of seconds."""
    counted = (folder / f"writes-{rank}.txt" for rank in range(ranks))
    own = [(GKD, each, folder / "out", 0, "kill", *arguments) for each in counted]
    environments = forked.environments(ranks, GKD_CACHE=str(folder / "cache"))
    processes = [
        forked.start(*each, cwd=folder, **environment)
        for each, environment in zip(own, environments, strict=True)
    ]
    time.sleep(after)
    for victim in victims:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if processes[victim].is_alive():
                os.kill(processes[victim].pid, signal.SIGKILL)
    for process in processes:
        process.join()


def students(folder):
    return {
        path.relative_to(folder): load_file(path) for path in folder.rglob("student/*.safetensors")
    }


def assert_same_students(folder, expected):
    found, wanted = students(folder), students(expected)
    assert found.keys() == wanted.keys()
    for path, weights in wanted.items():
        assert all((found[path][name] == weight).all() for name, weight in weights.items()), path


def go_on(folder, said, status, new):
    """Continue a run as its message says, or as one does after a kill."""
    starts = status == 130 or "start again" in said or not (folder / "out/config.toml").exists()
    if starts:
        shutil.rmtree(folder / "out", ignore_errors=True)
    arguments = new if starts else ["--resume"]
    again, told, _ = run(folder, "run", *arguments, "--output", folder / "out")
    assert again == 0, told
