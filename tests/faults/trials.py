"""Trials of a campaign: run `gkd` with a fault, go on as it says, and compare the students."""

from __future__ import annotations

import multiprocessing.process
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Started:
    """A `gkd` that runs, and the file of what it says on standard error."""

    process: multiprocessing.process.BaseProcess
    said: Path

    def send(self, number):
        """Send a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            if self.process.is_alive():
                os.kill(self.process.pid, number)

    def end(self):
        """Wait for its end: its status, and what it said."""
        self.process.join()
        return self.process.exitcode, self.said.read_text()


def start(folder, *arguments, slow=0, before="", **environment):
    """Start `gkd` in a folder, with code before it and steps that take milliseconds longer."""
    name = f"process-{len(list(folder.glob('process-*.err')))}"
    said = tuple(folder / f"{name}.{stream}" for stream in ("out", "err"))
    said[1].touch()
    faults = (folder / f"{name}.writes", folder / "out", slow, "slow")
    own = {"GKD_CACHE": str(folder / "cache"), "COLUMNS": "300"} | environment
    code = f"{before}\n{GKD}"
    return Started(forked.start(code, *faults, *arguments, cwd=folder, said=said, **own), said[1])


def start_ranks(folder, ranks, *arguments, slow=0):
    """Start `gkd` on several ranks, as torchrun does."""
    environments = forked.environments(ranks)
    return [start(folder, *arguments, slow=slow, **each) for each in environments]


def run_killed(folder, *arguments, after, ranks=1, victims=(0,)):
    """Run `gkd` in a folder, on several ranks, and kill some after a number of seconds."""
    started = start_ranks(folder, ranks, *arguments)
    time.sleep(after)
    for victim in victims:
        started[victim].send(signal.SIGKILL)
    return [each.end() for each in started]


def wait_for(folder, pattern, started):
    """Wait until a file is there, or a process has ended."""
    while not any(folder.glob(pattern)) and started.process.is_alive():
        time.sleep(0.01)


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
