import math
import socket
import subprocess

import pytest

from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry
from gkd_core.studies.cell import Cell
from gkd_core.studies.launchers import capacity, slurm
from gkd_core.studies.launchers.capacity import Capacity
from gkd_core.studies.shard import Shard, read_shard
from gkd_core.testing import check_launcher


def _jobs(count, threads=None, memory=2**30):
    return [CellJob(f"c{n}", f"cell {n}", ("true",), threads, memory, 0.0) for n in range(count)]


def _launch(folder, jobs, limit=None):
    said = []
    return Launch(folder, jobs, limit, said.append), said


def test_local_launcher_keeps_the_contract():
    check_launcher(registry().launcher("local"))


class Forgetful(Launcher):
    """Never tells how a cell ended."""

    name = "forgetful"

    def launch(self, launch):
        for job in launch.jobs:
            subprocess.run(job.command, check=False)
            yield JobEvent(job)


class Deaf(registry().launcher("local")):
    """Leaves its cells alone when it is closed."""

    name = "deaf"

    def launch(self, launch):
        for job in launch.jobs:
            with subprocess.Popen(job.command) as process:
                try:
                    yield JobEvent(job)
                except GeneratorExit:
                    process.kill()
                    raise
                yield JobEvent(job, process.wait())


@pytest.mark.parametrize(
    ("launcher", "message"), [(Forgetful, "the events say"), (Deaf, "must get SIGTERM")]
)
def test_launcher_that_breaks_the_contract_is_found(launcher, message):
    with pytest.raises(AssertionError, match=message):
        check_launcher(launcher)


def test_options_of_launchers_are_checked():
    with pytest.raises(ConfigError, match="--option of launcher slurm: nonesuch"):
        registry().make_launcher("slurm", {"nonesuch": 1})
    with pytest.raises(ConfigError, match="There are local, ray, slurm"):
        registry().make_launcher("nonesuch", {})


@pytest.mark.parametrize(
    ("cells", "limit", "threads", "expected"),
    [(9, None, None, (4, 2)), (2, None, None, (2, 4)), (9, None, 4, (2, 4)), (9, 3, None, (3, 2))],
)
def test_as_many_cells_run_as_memory_and_cores_allow(monkeypatch, cells, limit, threads, expected):
    monkeypatch.setattr(capacity, "free_cores", lambda: 8)
    monkeypatch.setattr(capacity, "free_memory", lambda: 4.5 * 2**30)
    found = Capacity.of_machine(_jobs(cells, threads), limit)
    assert (found.jobs, found.threads) == expected


def _cells(tasks=("a", "b"), seeds=(1, 2, 3)):
    return [Cell(f"{t}{s}", {"method": "kd"}, s, t) for t in tasks for s in seeds]


@pytest.mark.parametrize("is_tuned", [False, True])
def test_shards_share_the_cells_without_rest(is_tuned):
    cells = _cells()
    shares = [Shard(index, 4).of(cells, is_tuned) for index in range(4)]
    assert sorted(cell.name for share in shares for cell in share) == [c.name for c in cells]
    sizes = sorted(map(len, shares))
    # Cells whose learning rate is tuned together stay together.
    assert sizes == ([0, 0, 3, 3] if is_tuned else [1, 1, 2, 2])


def test_shard_is_read_from_flags_and_environment():
    assert read_shard("3/4", None, {}) == Shard(3, 4)
    assert read_shard(None, None, {"SLURM_ARRAY_TASK_ID": "5"}) == Shard(0, 1)
    assert read_shard(None, 4, {"SLURM_ARRAY_TASK_ID": "5"}) == Shard(1, 4)
    assert read_shard(None, 4, {"JOB_COMPLETION_INDEX": "2"}) == Shard(2, 4)
    for given, message in (("4/4", "the index from 0"), ("x", "the index from 0")):
        with pytest.raises(ConfigError, match=message):
            read_shard(given, None, {})
    with pytest.raises(ConfigError, match="needs the number of this process in SLURM_ARRAY"):
        read_shard(None, 4, {})


def test_array_script_runs_a_share_and_requeues_what_was_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "a study"
    study.mkdir()
    options = {"time": "00:10:00", "tasks": 4, "sbatch": ["--partition=long"]}
    launch, said = _launch(study, _jobs(9, threads=2), limit=3)
    assert list(registry().make_launcher("slurm", options).launch(launch)) == []
    script = (study / "slurm.sh").read_text()
    for line in (
        "#SBATCH --array=0-3%3",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=1024M",
        "#SBATCH --time=00:10:00",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --partition=long",
        f"cd {tmp_path} || exit 1",
    ):
        assert line in script.splitlines()
    assert f"study run '{study}' --jobs 1 --threads 2 --shards 4 &" in script
    assert "4 jobs for 9 cells" in said[0]
    assert subprocess.run(["bash", "-n", study / "slurm.sh"], check=False).returncode == 0


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (2, False)])
def test_array_script_waits_for_the_end_of_what_it_signals(tmp_path, monkeypatch, status, requeued):
    """The script itself, with a command that takes a moment to stop."""
    monkeypatch.chdir(tmp_path)
    launch, _ = _launch(tmp_path, _jobs(1), None)
    script = registry().make_launcher("slurm", {}).script(launch, 1)
    child = f"trap 'sleep 0.3; exit {status}' USR1; sleep 0.3; kill -USR1 $PPID; sleep 5 & wait"
    (tmp_path / "child.sh").write_text(child)
    command = next(line for line in script.splitlines() if line.endswith("--shards 1 &"))
    script = script.replace(command, "bash child.sh &")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    done = subprocess.run(["bash", "-c", script], check=False, timeout=20)
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("UNLIMITED", math.inf),
        ("3:30", 210),
        ("04:00:00", 14400),
        ("1-0", 86400),
        ("2-6:30", 196200),
        ("1-00:00:05", 86405),
    ],
)
def test_time_limits_are_read_as_sbatch_does(time, seconds):
    assert slurm.seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("time", "message"), [(2, "leaves no time to train"), ("4h", "expected MINUTES")]
)
def test_time_limit_that_ends_before_it_begins_is_refused(time, message):
    with pytest.raises(ConfigError, match=message):
        registry().make_launcher("slurm", {"time": time}).check()


def test_ray_that_does_not_answer_is_named_at_once():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        ray = registry().make_launcher("ray", {"address": address})
        with pytest.raises(ConfigError, match=r"no Ray cluster answers .* gkd starts none"):
            ray._connect(None)


def test_ray_is_named_where_it_is_missing(monkeypatch):
    from gkd_core.studies.launchers import ray

    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        registry().make_launcher("ray", {}).check()
