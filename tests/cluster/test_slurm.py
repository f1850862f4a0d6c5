"""Studies on a real SLURM cluster; SLURM_CONF names it."""

import os
import shutil
import subprocess

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ, reason="no SLURM"
    ),
]


def _ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def jobs():
    yield
    _ask("scancel", "--user=root")


@pytest.mark.usefixtures("jobs")
def test_array_survives_a_cancelled_job_a_time_limit_and_a_second_command(nine_cells):
    options = ("submit=true", "tasks=3", "time=00:10:00")
    arguments = [part for option in options for part in ("--option", option)]
    threads = ("--threads", "1")
    assert nine_cells.run("--launcher", "slurm", *arguments, "--jobs", "2", *threads) == 0
    nine_cells.wait_for(lambda: len(nine_cells.attempts()) >= 2)
    array = _ask("squeue", "--noheader", "--format=%F").split()[0]
    # What SLURM does before a time limit, and what a user does to get rid of a job.
    _ask("scancel", "--signal=USR1", "--batch", f"{array}_0")
    nine_cells.wait_for(lambda: "PD" in _ask("squeue", "--noheader", "--format=%t"), seconds=60)
    _ask("scancel", f"{array}_1")
    overlapping = nine_cells.start("--shard", "0/1", *threads, command=("run", "studies/nine"))
    nine_cells.wait_for(lambda: len(nine_cells.finished) == 9)
    assert overlapping.wait(60) == 0
    assert sorted(nine_cells.finished) == sorted(nine_cells.cells)
    assert all(each["status"] == 0 for each in nine_cells.attempts().values())
