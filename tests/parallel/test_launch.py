"""`gkd run --nproc`, and the same command under other launchers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import forked

from gkd_core.distributed.rank_info import RankInfo, first_node, read_launcher_env
from gkd_core.parallel import launch
from gkd_core.parallel.launch import Failure, start_ranks


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login1",
}


def test_place_is_what_torchrun_or_deepspeed_says():
    assert read_launcher_env(TORCHRUN) == RankInfo(3, 8, 1, "node1", 29500)


def test_place_follows_from_the_tasks_of_srun():
    place = read_launcher_env(SRUN)
    assert place == RankInfo(5, 8, 1, "gpu07", place.port)
    assert place.port == read_launcher_env(SRUN | {"SLURM_PROCID": "0"}).port
    assert place.port != read_launcher_env(SRUN | {"SLURM_JOB_ID": "41235"}).port
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert read_launcher_env(SRUN | chosen) == RankInfo(5, 8, 1, "10.0.0.1", 1234)


def test_single_process_has_no_place():
    assert read_launcher_env({}) is None
    script = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert read_launcher_env(script | {"SLURM_PROCID": "0"}) is None
    assert read_launcher_env(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[07-09,12],login1", "node07"),
        ("a[3,5]", "a3"),
        ("rack[2-3]node[1-4]", "rack2node1"),
    ],
)
def test_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_exported_place_is_found_again(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "so that it is as before afterwards")
    place = RankInfo(5, 8, 1, "gpu07", 20001)
    place.export()
    assert read_launcher_env(os.environ) == place


def test_failure_names_the_signal():
    assert Failure(1, -9).killer == "SIGKILL"
    assert Failure(1, 2).killer is None


HANGING = """
import os, time
from gkd_core.cli import main
from gkd_core.training import loop

stock = loop.train_step

def train_step(stage, batches, step):
    if os.environ["RANK"] == "1" and step.index == 4:
        time.sleep(12)
    return stock(stage, batches, step)

loop.train_step = train_step
main()
"""


@pytest.mark.exhaustive
def test_rank_that_hangs_ends_the_run_which_says_where_others_waited(arguments, tmp_path):
    timeout = ("--set", "parallel.timeout=2", "--output", "run")
    first, _ = forked.run_ranks(2, *arguments, *timeout, cwd=tmp_path, code=HANGING)
    assert first.returncode == 1
    assert first.stderr.startswith("Process 0 waited here:\n")
    assert " in sum_gradients\n" in first.stderr or " in add_counts\n" in first.stderr
    assert (
        "Error: a process hangs: others have waited for it in vain. If it only needs"
        in first.stderr
    )
    assert "raise parallel.timeout. Continue with: gkd run --resume --output run\n" in first.stderr
    for done in forked.run_ranks(2, "run", "--resume", "--output", "run", cwd=tmp_path):
        assert done.returncode == 0, done.stderr


HANGS = """
import faulthandler, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
faulthandler.register(signal.SIGUSR2, all_threads=True)
print("ready", flush=True)
def hangs_in_vain():
    time.sleep(60)
hangs_in_vain()
"""


def test_rank_that_does_not_end_shows_where_it_hangs(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    monkeypatch.setattr(launch, "SHOWING", 0.3)
    command = [sys.executable, "-c", HANGS]
    rank = subprocess.Popen(command, stdout=subprocess.PIPE)
    done = subprocess.Popen([sys.executable, "-c", ""])
    with rank, done:
        assert rank.stdout.readline() == b"ready\n"
        done.wait()
        launch._end([done, rank])
    assert rank.returncode == -signal.SIGKILL
    said = capfd.readouterr().err
    assert said.startswith("Process 1 hangs here:\n")
    assert "in hangs_in_vain" in said


FAULTY = """
import os, signal
import gkd_core
from gkd_core.errors import GkdError

@gkd_core.hookimpl
def gkd_step_end(run, stage, step, losses):
    done = run.directory / "failed"
    if os.environ.get("RANK") != "1" or step.index < 4 or done.exists():
        return
    done.touch()
    match os.environ["FAULT"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "error":
            raise GkdError("rank 1 cannot go on")
        case "bug":
            raise KeyError("a bug in rank 1")
"""


@pytest.fixture
def faulty(tmp_path):
    """Environment with a plugin that fails in rank 1 after five steps, once, as FAULT says."""
    folder = tmp_path / "plugins"
    distribution = folder / "faulty-1.0.dist-info"
    distribution.mkdir(parents=True)
    (folder / "faulty.py").write_text(FAULTY)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[gkd]\nfaulty = faulty\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def arguments(still):
    """Arguments of a run of 18 steps without dropout."""
    return [
        *("run", "--method", "pkd+soft", "--teacher", still / "teacher", "--student-layers", 2),
        *("--data", still / "train.jsonl", "--set", f"task.validation={still}/validation.jsonl"),
        *("--set", "task.max_length=32", "--set", "training.batch_size=16"),
        *("--set", "training.lr=1e-3", "--set", "training.eps=1e-4"),
        *("--set", "training.log_every=1"),
        *("--set", "training.checkpoint_every=2", "--set", "output.reuse=false"),
    ]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """The directory of the run in one process, and what it said."""
    folder = tmp_path_factory.mktemp("one")
    done = forked.run(forked.GKD, *arguments, "--output", "alone", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "alone", done.stdout


def _assert_equal(found, expected, tolerance=1e-5):
    def numbers(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss/total"] for line in lines if "loss/total" in line]

    assert numbers(found) == pytest.approx(numbers(expected), rel=tolerance)
    mine, theirs = (load_file(f / "student" / "model.safetensors") for f in (found, expected))
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=tolerance)


def test_ranks_are_started_and_end_as_one_process_does(gkd, arguments, alone, tmp_path):
    expected, said = alone
    own = ("--set", "output.every_log=true")
    ranks = gkd(*arguments, "--output", "ranks", "--nproc", 2, *own)
    assert ranks.returncode == 0, ranks.stderr
    _assert_equal(tmp_path / "ranks", expected)
    assert "step 18/18  loss/total" in (tmp_path / "ranks" / "log-1.txt").read_text()
    for text in ("stage distil: steps 1 to 18", "step 18/18  total", "student  ranks/student"):
        assert ranks.stdout.count(text) == said.count(text.replace("ranks", "alone")) == 1
    assert (tmp_path / "ranks" / "report.html").exists()
    assert "[" not in ranks.stderr.replace("00:00", "").split("Writing")[0]


def test_mistake_is_told_once_before_ranks_are_started(invoke, arguments, tmp_path):
    done = invoke(*arguments, "--output", "run", "--nproc", 2, "--method", "sfot")
    assert done.code == 2
    assert done.err.count("unknown method 'sfot'") == 1
    assert not (tmp_path / "run").exists()


def test_directory_of_a_run_is_left_alone(invoke, arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    done = invoke(*arguments, "--output", "run", "--nproc", 2)
    assert done.code == 2
    assert done.err.count("run already exists") == 1


def _fails(gkd, arguments, faulty, folder, fault, said):
    """Run until rank 1 fails: all end within a minute, and it is told once; return the status."""
    done = gkd(*arguments, "--output", "run", "--nproc", 2, FAULT=fault, **faulty)
    assert done.stderr.count(said) == 1
    assert "rank0" not in done.stderr
    assert time.time() - (folder / "run" / "failed").stat().st_mtime < 60
    return done.returncode


RANK = """#!/bin/sh
touch "$RANK.started"
if [ "$RANK" = 1 ]; then
    while [ ! -e 0.started ]; do sleep 0.01; done
    {}
fi
exec sleep 60
"""
"""Stands for a rank, which would take seconds to import torch."""


@pytest.mark.parametrize(
    ("ends", "failure"), [("exit 3", Failure(1, 3)), ("kill -9 $$", Failure(1, -9))]
)
def test_rank_that_fails_ends_all(tmp_path, monkeypatch, ends, failure):
    (tmp_path / "rank").write_text(RANK.format(ends))
    (tmp_path / "rank").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "rank"))
    start = time.monotonic()
    assert start_ranks(2, [], {}) == failure
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("error", 2, "Error: rank 1 cannot go on"),
        ("bug", 1, "KeyError: 'a bug in rank 1'"),
    ],
)
def test_run_whose_rank_fails_ends(gkd, arguments, faulty, tmp_path, fault, status, said):
    assert _fails(gkd, arguments, faulty, tmp_path, fault, said) == status
    checkpoints = tmp_path / "run" / "stages" / "distil" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_run_whose_rank_was_killed_can_go_on(gkd, arguments, alone, faulty, tmp_path):
    said = "process 1 of 2 was killed by SIGKILL"
    assert _fails(gkd, arguments, faulty, tmp_path, "kill", said) == 1
    again = gkd("run", "--resume", "--output", "run", FAULT="kill", **faulty)
    assert again.returncode == 0, again.stderr
    _assert_equal(tmp_path / "run", alone[0])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_loss_that_every_rank_refuses_is_told_once(gkd, arguments):
    done = gkd(*arguments, "--output", "run", "--nproc", 2, "--set", "training.lr=1e30")
    assert done.returncode == 2
    assert done.stderr.count("Error: the loss of stage 'distil'") == 1


def _under_torchrun(arguments, folder, **environment):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "gkd_core.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment,
        timeout=400,
    )


@pytest.mark.exhaustive
def test_same_command_works_under_torchrun(arguments, alone, tmp_path):
    done = _under_torchrun(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    _assert_equal(tmp_path / "runs" / "pkd+soft-1", alone[0])
    assert done.stdout.count("student  runs/pkd+soft-1/student") == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_mistake_is_told_once_under_torchrun(arguments, faulty, tmp_path):
    failed = _under_torchrun(arguments, tmp_path, FAULT="error", **faulty)
    assert failed.returncode != 0
    assert failed.stderr.count("Error: rank 1 cannot go on") == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_number_that_differs_from_that_of_the_launcher_is_refused(arguments, tmp_path):
    done = _under_torchrun([*arguments, "--set", "parallel.nproc=4"], tmp_path)
    assert done.stderr.count("parallel.nproc is 4 (--set), but 2 processes were started") == 1


@contextmanager
def _long_run(arguments, folder):
    """Two ranks of a long run that has a checkpoint."""
    command = [sys.executable, "-m", "gkd_core.cli", *map(str, arguments), "--output", "run"]
    found = folder / "run" / "stages" / "distil" / "checkpoints"
    with subprocess.Popen(
        [*command, "--nproc", "2", "--set", "training.epochs=60"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            end = time.monotonic() + 120
            while not any(found.glob("step-????????")) and time.monotonic() < end:
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def _ended(process):
    """The status of a process and what it said."""
    _, said = process.communicate(timeout=180)
    return process.returncode, "".join(
        line for line in said.splitlines() if not line.startswith("Writing")
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["launcher", "all"])
def test_interrupted_ranks_stop_at_one_step_and_say_once_how_to_go_on(arguments, tmp_path, send):
    with _long_run(arguments, tmp_path) as process:
        send(process.pid, signal.SIGINT)
        status, said = _ended(process)
    checkpoint = max((tmp_path / "run" / "stages" / "distil" / "checkpoints").iterdir())
    assert status == 75
    assert said == (
        f"Error: stopped by SIGINT after step {int(checkpoint.name[5:])} of stage distil. "
        "Continue with: gkd run --resume --output run"
    )


def _ranks_of(launcher):
    """The processes that a launcher has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


@pytest.mark.exhaustive
def test_run_whose_launcher_was_killed_goes_on_at_once(gkd, arguments, tmp_path):
    with _long_run(arguments, tmp_path) as process:
        ranks = _ranks_of(process.pid)
        assert len(ranks) == 2
        process.kill()
        process.wait()
        rarely = ("--set", "training.checkpoint_every=90")
        again = gkd("run", "--resume", "--output", "run", "--nproc", 1, *rarely)
    assert again.returncode == 0, again.stderr
    assert not any(_is_alive(rank) for rank in ranks)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads the sockets of processes")
def test_ranks_listen_where_only_this_machine_hears(arguments, tmp_path):
    with _long_run(arguments, tmp_path) as process:
        ranks = _ranks_of(process.pid)
        assert len(ranks) == 2
        found = {rank: _listens_at(rank) for rank in ranks}
        assert _listens_at(process.pid) == set()
    assert all(found.values()), "gloo listens"
    assert set().union(*found.values()) <= {"0100007F", "00000000000000000000000001000000"}


def _listens_at(process):
    """The addresses at which a process listens, as the system writes them."""
    links = (os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir())
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    files = (Path(f"/proc/{process}/net/{kind}") for kind in ("tcp", "tcp6"))
    rows = [row.split() for file in files for row in file.read_text().splitlines()[1:]]
    listening = "0A"
    return {row[1].partition(":")[0] for row in rows if row[3] == listening and row[9] in own}


def _is_alive(process):
    """Return whether a process runs; one that ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


LAUNCHER = """
import os, subprocess, sys
rank = "import os, time; from gkd_core.parallel.launch import obey_launcher as die; " \\
    "die(os.environ); print(os.getpid(), flush=True); time.sleep(60)"
subprocess.run([sys.executable, "-c", rank], env=os.environ | {"GKD_LAUNCHER": str(os.getpid())})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends the ranks")
def test_rank_dies_with_its_launcher():
    command = [sys.executable, "-c", LAUNCHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        rank = int(launcher.stdout.readline())
        launcher.kill()
        # The rank had the pipe open: the end of the file is the beginning of its end.
        assert launcher.stdout.read() == ""
    deadline = time.monotonic() + 10
    while _is_alive(rank) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(rank)


STARVED = """
import atexit, os, sys
from gkd_core.cli.ranks import among_ranks, ending

with ending(), among_ranks():
    import torch
    import torch.distributed as dist
    atexit.register(print, "put in order")
    kept = dist.group.WORLD
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/comm") as file:
            if "gloo_runloop" in file.read():
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
    for _ in range(20):
        dist.all_reduce(torch.zeros(1))
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="slows down threads of the process")
def test_rank_ends_while_gloo_still_holds_a_tensor(tmp_path):
    """On an idle machine, gloo lets go of tensors in time; here it hardly gets its turn."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", STARVED],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | place | {"MASTER_PORT": str(free_port())},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "put in order\n", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_ranks_run_on_gpus(gkd, arguments, tmp_path, zero):
    settings = ["--set", f"parallel.zero={zero}", "--set", "teacher.placement=offload"]
    alone = gkd(*arguments, "--output", "alone", "--set", "parallel.device=cpu")
    assert alone.returncode == 0, alone.stderr
    count = torch.cuda.device_count()
    ranks = gkd(*arguments, "--output", "ranks", "--nproc", count, *settings)
    assert ranks.returncode == 0, ranks.stderr
    _assert_equal(tmp_path / "ranks", tmp_path / "alone", 1e-3)
    half = gkd(*arguments, "--output", "half", *settings, "--set", "training.precision=bf16")
    assert half.returncode == 0, half.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_gpus_share_models(gkd, arguments, tmp_path, zero):
    """Over NCCL, in fp32 and in bf16."""
    alone = gkd(*arguments, "--output", "alone", "--set", "parallel.device=cpu")
    assert alone.returncode == 0, alone.stderr
    count = torch.cuda.device_count() // 2 * 2
    layout = [f"parallel.zero={zero}", "parallel.tensor=2", "teacher.tensor=2"]
    settings = [part for setting in layout for part in ("--set", setting)]
    ranks = gkd(*arguments, "--output", "ranks", "--nproc", count, *settings)
    assert ranks.returncode == 0, ranks.stderr
    _assert_equal(tmp_path / "ranks", tmp_path / "alone", 1e-3)
    settings += ["--set", "training.precision=bf16"]
    half = gkd(*arguments, "--output", "half", "--nproc", count, *settings)
    assert half.returncode == 0, half.stderr
