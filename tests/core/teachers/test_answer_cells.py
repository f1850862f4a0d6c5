"""A cache that several processes write: each shard once, and the bytes of one process."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gkd_core.contract.launcher import JobEvent, Launcher
from gkd_core.launchers.shard import ALL, Shard
from gkd_core.lease import hold
from gkd_core.runs import answer_division
from gkd_core.runs.answer_cache import BegunCache, write_cache
from gkd_core.runs.answer_cells import Cells, launch_cells
from gkd_core.runs.answer_storage import Storage
from gkd_core.teachers.answer_cache import CacheManifest
from gkd_core.teachers.answer_shard import AnswerShard

KIND = ("task.kind=causal-lm", "task.max_length=32")


class Here(Launcher):
    """Writes the share of each cell in this process; those of `failing` fail."""

    name = "here"
    failing = ()

    def launch(self, launch):
        self.launched = [job.label for job in launch.jobs]
        for job in launch.jobs:
            yield JobEvent(job)
            yield JobEvent(job, self._run(job))

    def _run(self, job):
        log = Path(job.command[3])
        if job.name in self.failing:
            log.parent.mkdir(exist_ok=True)
            log.write_text("Warning: x\nError: the teacher is nowhere\n")
            return 2
        index, count = job.command[-1].split("/")
        self.write(Shard(int(index), int(count)))
        return 0


@pytest.fixture
def begin(prepare_run, tmp_path, monkeypatch):
    """Begin a cache of six shards: `begin(folder)` -> it, and what writes a share of it."""
    monkeypatch.setattr(answer_division, "ROWS", 4)
    monkeypatch.setattr(answer_division, "BATCHES", 4)
    run = prepare_run("method=soft", *KIND, teachers=("lm-decoder",))

    def _begin(folder):
        device = torch.device("cpu")
        begun = BegunCache.begin(run.last, tmp_path / folder, Storage(), device, print)
        assert begun.manifest.shards == 6

        def write(share=ALL):
            said = []
            write_cache(run.last, run.registry, begun, said.append, share)
            begun.finish()
            return said

        return begun, write

    return _begin


@pytest.fixture
def launch(begin, prepare_run):
    """Launch a cache in cells: `launch(begun, write, ...)` -> exit statuses, labels, lines."""
    run = prepare_run("method=soft", *KIND, teachers=("lm-decoder",))

    def _launch(begun, write, count=None, failing=(), share=ALL):
        launcher, said = Here(), []
        launcher.write, launcher.failing, launcher.launched = write, failing, []
        cells = Cells(("gkd", "cache"), share, count, None, 1)
        statuses = launch_cells(run.last, begun, cells, launcher, said.append)
        return statuses, launcher.launched, said

    return _launch


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shares_of_a_cache_end_with_the_bytes_of_one_process(begin, monkeypatch):
    whole, write = begin("whole")
    assert write() == [f"shard {number + 1} of 6" for number in range(6)]
    shared, write = begin("shared")
    assert write(Shard(1, 4)) == ["shard 2 of 6", "shard 6 of 6"]
    assert str(shared.progress) == f"{shared.folder}: 2 of 6 shards are there, 4 left"
    assert not CacheManifest.load(shared.folder, "").is_finished
    with monkeypatch.context() as dying:
        dying.setattr(AnswerShard, "save", killed_at(2))
        with pytest.raises(KeyboardInterrupt):
            write(Shard(0, 2))
    assert write(Shard(0, 2)) == ["shard 3 of 6", "shard 5 of 6"]
    assert write() == ["shard 4 of 6"]
    assert files(shared.folder) == files(whole.folder)
    assert write() == []


def killed_at(number):
    """Return what saves shards but the one with a number, which leaves a draft and a marker."""
    stock = AnswerShard.save

    def save(self, folder, name, fidelity=None):
        if not name.startswith(f"shard-{number:06d}"):
            return stock(self, folder, name, fidelity)
        (folder / f"{name}.1.tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    return save


def test_a_shard_that_another_process_writes_is_left_to_it(begin):
    begun, write = begin("answers")
    with hold(begun.folder / "shard-000004"):
        assert len(write()) == 5
        expected = f"{begun.folder}: 5 of 6 shards are there, 1 being written, 0 left"
        assert str(begun.progress) == expected
    assert write() == ["shard 5 of 6"]
    assert begun.finish().is_finished


def test_a_damaged_shard_is_written_again(begin):
    begun, write = begin("answers")
    write()
    before = files(begun.folder)
    (path,) = begun.folder.glob("shard-000002-*")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert write() == ["shard 3 of 6"]
    assert files(begun.folder) == before
    path.rename(path.with_name(f"shard-000002-{'0' * 64}.safetensors"))
    assert write() == ["shard 3 of 6"]
    assert files(begun.folder) == before


def test_cells_divide_what_is_left(begin, launch):
    whole, write = begin("whole")
    write()
    begun, write = begin("cells")
    write(Shard(0, 6))
    statuses, labels, said = launch(begun, write, 2, failing=("1-of-2",))
    assert labels == ["shard 3 and 1 more", "shard 2 and 2 more"]
    assert statuses == {0, 2}
    assert said[0] == f"{labels[0]} done. {begun.folder}: 3 of 6 shards are there, 3 left"
    log = begun.folder / "cells" / "1-of-2.log"
    assert said[1].startswith(f"{labels[1]} failed: the teacher is nowhere ({log}). ")
    assert not begun.finish().is_finished
    statuses, labels, _ = launch(begun, write, share=Shard(1, 2))
    assert (statuses, labels) == ({0}, ["shard 2", "shard 4", "shard 6"])
    assert files(begun.folder) == files(whole.folder)
    assert launch(begun, write) == (set(), [], [])


@pytest.fixture
def many(world, tmp_path):
    """Write rows for four shards, and return what a cache of them is written with."""
    draw = random.Random(1)
    words = (world / "corpus.txt").read_text().split()
    texts = (" ".join(draw.choices(words, k=8)) for _ in range(4000))
    (tmp_path / "corpus.txt").write_text("".join(f"{text}\n" for text in texts))
    settings = [part for setting in KIND for part in ("--set", setting)]
    return ["--teacher", str(world / "lm-decoder"), "--data", "corpus.txt", *settings]


def test_a_share_and_what_is_about_cells_are_checked(invoke, many):
    done = invoke("cache", *many, "--output", "a", "--jobs", 2)
    assert "--jobs is about the cells of a --launcher" in done.err
    done = invoke("cache", *many, "--output", "a", "--launcher", "nowhere")
    assert "There are local, ray, slurm" in done.err
    done = invoke("cache", *many, "--output", "a", "--shard", "2/2")
    assert "--shard 2/2: expected INDEX/COUNT" in done.err
    done = invoke("cache", *many, "--output", "a", "--shard", "1/2")
    assert (done.code, done.out.splitlines()[-1]) == (0, "a: 2 of 4 shards are there, 2 left")
    with hold(Path("a/shard-000000")):
        done = invoke("cache", *many, "--output", "a")
    assert done.code == 75
    done = invoke("cache", *many, "--output", "a", "--launcher", "slurm")
    assert done.code == 0, done.err
    script = Path("a/slurm.sh").read_text()
    assert "#SBATCH --array=0-0" in script
    assert "--dtype fp16 --shards 1 &" in script


def test_cells_are_told_all_about_the_answers(invoke, many):
    (Path.cwd() / "own.toml").write_text("seed = 2\n")
    form = ["--form", "top-k", "--k", "8", "--temperature", "2.0", "--dtype", "fp32"]
    about = [*many, *form, "--output", "b", "--method", "kd", "own.toml"]
    done = invoke("cache", *about, "--launcher", "slurm", "--cells", 2)
    assert done.code == 0, done.err
    script = shlex.split(Path("b/slurm.sh").read_text(), comments=True)
    told = script[script.index("cache") + 1 : script.index("--shards")]
    assert sorted(told) == sorted(about)


@pytest.mark.exhaustive
def test_cells_that_are_killed_go_on_and_end_with_the_same_bytes(many, tmp_path):
    """Real processes: a cell is killed, then the command."""
    environment = os.environ | {"GKD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(folder, *launcher):
        line = [sys.executable, "-m", "gkd_core.cli", "cache", *many, "--output", folder, *launcher]
        return subprocess.Popen(line, cwd=tmp_path, env=environment)

    local = ("--launcher", "local", "--jobs", "2", "--threads", "1")
    assert start("whole").wait(240) == 0
    command = start("cells", *local, "--cells", "2")
    _wait_for((tmp_path / "cells" / ".shard-000000.lease").exists)
    for number in _processes(tmp_path, "--shard 0/2"):
        os.kill(number, signal.SIGKILL)
    assert command.wait(240) == 1
    assert len(list((tmp_path / "cells").glob("shard-*"))) == 2, "those of the other cell"
    command = start("cells", *local, "--cells", "2")
    _wait_for(lambda: _processes(tmp_path, "--shard 0/2"))
    command.terminate()
    assert command.wait(240) in (75, 0)
    assert start("cells", *local, "--cells", "2").wait(240) == 0
    assert files(tmp_path / "cells") == files(tmp_path / "whole")


def _processes(folder, text):
    """Return the numbers of the processes in a folder whose command line has a text."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if text in line and (place / "cwd").resolve() == folder:
                found.append(int(place.name))
        except OSError:  # it has just ended
            continue
    return found


def _wait_for(condition):
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
