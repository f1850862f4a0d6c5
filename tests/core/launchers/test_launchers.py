import math
import socket
import subprocess
from operator import attrgetter
from types import SimpleNamespace

import pytest
import tomli_w

from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher
from gkd_core.errors import ConfigError
from gkd_core.launchers import capacity, gpus, slurm
from gkd_core.launchers.capacity import Capacity
from gkd_core.launchers.gpus import Gpu
from gkd_core.launchers.shard import Shard, read_shard
from gkd_core.plugins import registry
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.execution import job_of
from gkd_core.studies.needs import Needs
from gkd_core.studies.study_config import parse_study
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.testing import check_launcher


def _jobs(count, threads=None, memory=2**30, gpus=0.0):
    return [CellJob(f"c{n}", f"cell {n}", ("true",), threads, memory, gpus) for n in range(count)]


def _launch(folder, jobs, limit=None):
    said = []
    return Launch(folder, jobs, ("gkd", "run some", "--jobs", "1"), limit, said.append), said


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


@pytest.fixture
def big_machine(monkeypatch):
    """Give the machine cores, memory and two GPUs, of the second of which a third is taken."""
    monkeypatch.setattr(capacity, "free_cores", lambda: 64)
    monkeypatch.setattr(capacity, "free_memory", lambda: 2.0**40)
    two = [Gpu("4", 79 * 2**30, 80 * 2**30), Gpu("7", 53 * 2**30, 80 * 2**30)]
    monkeypatch.setattr(capacity, "gpus", lambda: two)


@pytest.mark.parametrize(
    ("share", "limit", "devices"),
    [
        (0.3, None, ("4", "7", "4", "7", "4")),
        (0.3, 3, ("4", "7", "4")),
        (0.3, 7, ("4", "7", "4", "7", "4", "4", "7")),
        (0.7, None, ("4",)),
        (1.0, None, ("4", "7")),
        (2.0, None, ("4,7",)),
        (0.0, None, ()),
    ],
)
def test_as_many_cells_run_as_gpus_have_room_for(big_machine, share, limit, devices):
    found = Capacity.of_machine(_jobs(9, gpus=share), limit)
    assert (found.jobs, found.devices) == (limit or len(devices) or 9, devices)


def test_cell_that_needs_more_gpus_than_there_are_is_refused(big_machine):
    with pytest.raises(ConfigError, match=r"needs 3 GPUs, of which this machine has 2.*device=cpu"):
        Capacity.of_machine(_jobs(1, gpus=3.0), None)


def test_cells_on_one_machine_see_different_gpus(big_machine, tmp_path):
    write = f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/$0; until [ -e {tmp_path}/$1 ]; do :; done"
    names = ("a", "b")  # each waits for the other, so that both run at a time
    jobs = [
        CellJob(own, own, ("bash", "-c", write, own, other), 1, 1, 1.0)
        for own, other in zip(names, reversed(names), strict=True)
    ]
    launch, said = _launch(tmp_path, jobs)
    statuses = [event.status for event in registry().make_launcher("local", {}).launch(launch)]
    assert statuses == [None, None, 0, 0]
    assert sorted((tmp_path / name).read_text().strip() for name in names) == ["4", "7"]
    assert said == ["2 at a time, 1 thread each, on the GPUs 4, 7"]


def test_gpus_are_asked_by_another_process(monkeypatch):
    monkeypatch.setattr(gpus.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpus, "ASK", "print([[3, 4], [1, 4]])")
    assert gpus.gpus() == [Gpu("0", 3, 4), Gpu("1", 1, 4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,2")
    assert gpus.gpus() == [Gpu("GPU-5", 3, 4), Gpu("2", 1, 4)]
    monkeypatch.setattr(gpus, "ASK", "raise SystemExit('all devices are busy')")
    with pytest.raises(ConfigError, match="all devices are busy"):
        gpus.gpus()
    monkeypatch.setattr(gpus.torch.cuda, "is_available", lambda: False)
    assert gpus.gpus() == []


def _folder(tmp_path, monkeypatch, has_gpu, **parallel):
    monkeypatch.setattr(gpus.torch.cuda, "is_available", lambda: has_gpu)
    folder = StudyFolder(tmp_path, parse_study({}, "test"), _cells())
    layout = {"parallel": {"device": "auto", "nproc": 1} | parallel}
    folder.write_configs({cell.name: tomli_w.dumps(layout) for cell in folder.cells})
    folder.write()
    return folder


@pytest.mark.parametrize(
    ("has_gpu", "parallel", "expected"),
    [
        (False, {}, 0.0),
        (False, {"device": "cuda"}, 1.0),
        (True, {}, 1.0),
        (True, {"device": "cpu"}, 0.0),
        (True, {"nproc": 4}, 4.0),
    ],
)
def test_cell_asks_for_a_gpu_where_it_would_use_one(
    tmp_path, monkeypatch, has_gpu, parallel, expected
):
    folder = _folder(tmp_path, monkeypatch, has_gpu, **parallel)
    assert job_of(folder, folder.cells[0], None, Needs.of(folder)).gpus == expected


def test_cell_asks_for_what_others_and_the_plan_have_taken(tmp_path, monkeypatch):
    folder = _folder(tmp_path, monkeypatch, has_gpu=True)
    Attempt(1, 0, memory=5, gpu=0.25).save(folder.attempt_file(folder.cells[1]))
    assert job_of(folder, folder.cells[0], None, Needs.of(folder)).gpus == 0.25
    Attempt(1, 0, memory=7, gpu=0.4).save(tmp_path / "timing" / "attempts" / "short.json")
    found = job_of(folder, folder.cells[0], None, Needs.of(folder))
    assert (found.gpus, found.memory) == (0.4, 7)


def test_what_a_process_takes_of_its_gpu_is_recorded(monkeypatch):
    assert gpus.share_taken() == 0.0
    cuda = gpus.torch.cuda
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    size = SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: size)
    monkeypatch.setattr(cuda, "max_memory_reserved", lambda: 3 * 2**29)
    assert gpus.share_taken() == 0.25  # 1.5 GiB of tensors, and half of one besides


def _cells(tasks=("a", "b"), seeds=(1, 2, 3)):
    return [Cell(f"{t}{s}", {"method": "kd"}, s, t) for t in tasks for s in seeds]


@pytest.mark.parametrize("is_tuned", [False, True])
def test_shards_share_the_cells_without_rest(is_tuned):
    cells = _cells()
    together = attrgetter("group" if is_tuned else "name")
    shares = [Shard(index, 4).of(cells, together) for index in range(4)]
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
        "#SBATCH --job-name='gkd-a study'",
        f"#SBATCH --output='{study}/slurm/%A_%a.log'",
        f"cd {tmp_path} || exit 1",
    ):
        assert line in script.splitlines()
    assert "gkd 'run some' --jobs 1 --shards 4 &" in script
    assert "export OMP_NUM_THREADS=2" in script
    assert "4 jobs for 9 cells" in said[0]
    assert subprocess.run(["bash", "-n", study / "slurm.sh"], check=False).returncode == 0


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (2, False), (138, True)])
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
    ("time", "message"), [(3, "leaves no time to train"), ("4h", "expected MINUTES")]
)
def test_time_limit_that_ends_before_it_begins_is_refused(time, message):
    with pytest.raises(ConfigError, match=message):
        registry().make_launcher("slurm", {"time": time}).check()


@pytest.mark.parametrize(
    ("gpus", "sbatch", "line"),
    [
        (0.3, [], "#SBATCH --gres=gpu:1"),
        (2.0, [], "#SBATCH --gres=gpu:2"),
        (0.3, ["--gres=gpu:a100:1"], "#SBATCH --gres=gpu:a100:1"),
        (0.0, [], None),
    ],
)
def test_array_script_asks_for_gpus(tmp_path, monkeypatch, gpus, sbatch, line):
    monkeypatch.chdir(tmp_path)
    launch, _ = _launch(tmp_path, _jobs(2, gpus=gpus), None)
    script = registry().make_launcher("slurm", {"sbatch": sbatch}).script(launch, 2)
    assert [each for each in script.splitlines() if "gres" in each] == ([line] if line else [])


def test_ray_cells_ask_for_their_share_of_gpus():
    ray, (job,) = registry().make_launcher("ray", {}), _jobs(1, gpus=0.25)
    assert ray._gpus(job) == 0.25
    assert "8 processors and 2 GPUs; a cell takes 0.25" in ray._room({"CPU": 8, "GPU": 2}, [job])
    assert ray._room({"CPU": 8}, _jobs(1)) == "Ray has 8 processors"
    with pytest.raises(ConfigError, match=r"takes 0.25 GPUs, of which Ray has 0.*--option gpus"):
        ray._room({"CPU": 8}, [job])
    assert registry().make_launcher("ray", {"gpus": 0.5})._gpus(job) == 0.5


def test_ray_that_does_not_answer_is_named_at_once():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        ray = registry().make_launcher("ray", {"address": address})
        with pytest.raises(ConfigError, match=r"no Ray cluster answers .* gkd does not start one"):
            ray._connect(None)


def test_ray_is_named_where_it_is_missing(monkeypatch):
    from gkd_core.launchers import ray

    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        registry().make_launcher("ray", {}).check()
