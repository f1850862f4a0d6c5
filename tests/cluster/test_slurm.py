"""Studies and a cache of answers on a real SLURM cluster; SLURM_CONF names it."""

import os
import re
import shutil
import subprocess

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ, reason="no SLURM"
    ),
]

RUN = ("run", "studies/nine")


def _ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def jobs():
    yield
    _ask("scancel", "--user=root")


def _submit(cells, *options):
    arguments = [part for option in ("submit=true", *options) for part in ("--option", option)]
    assert cells.run("--launcher", "slurm", *arguments, "--threads", "1", "--jobs", "2") == 0
    return _ask("squeue", "--noheader", "--format=%F").split()[0]


def _restarts(job):
    shown = _ask("scontrol", "show", "job", job)
    return sum(int(number) for number in re.findall(r"Restarts=(\d+)", shown))


@pytest.mark.usefixtures("jobs")
def test_array_survives_a_cancelled_job_and_shards_that_overlap(nine_cells, locally):
    array = _submit(nine_cells, "tasks=3", "time=00:30:00")
    nine_cells.wait_for(lambda: len(nine_cells.attempts()) >= 2)
    _ask("scancel", f"{array}_1")
    # One shard of one is all cells, also those that the array runs.
    overlapping = nine_cells.start("--shard", "0/1", "--threads", "1", command=RUN)
    assert overlapping.wait(900) in (0, 75)  # 75 as long as the array runs some of them
    nine_cells.wait_for(lambda: not _ask("squeue", "--noheader"))
    assert nine_cells.run("--threads", "1") == 0  # what the array had begun when it was cancelled
    nine_cells.assert_equal(locally)


@pytest.mark.usefixtures("jobs")
def test_job_at_its_time_limit_is_requeued_until_all_is_done(nine_cells, locally):
    """The limit is SLURM's own, and the cells of the only job take longer than it."""
    job = _submit(nine_cells, "tasks=1", "time=00:05:00")
    nine_cells.wait_for(lambda: _restarts(job) >= 1, seconds=300)
    nine_cells.wait_for(lambda: not _ask("squeue", "--noheader"), seconds=1800)
    nine_cells.assert_equal(locally)


@pytest.mark.usefixtures("jobs")
def test_cache_has_the_bytes_of_one_process_though_a_job_is_requeued(
    four_shards, written_here, wait_for
):
    slurm = ("--launcher", "slurm", "--option", "submit=true", "--threads", "1", "--cells", "2")
    assert four_shards.start(*slurm).wait(240) == 0
    array = _ask("squeue", "--noheader", "--format=%F").split()[0]
    wait_for(four_shards.is_being_written)
    _ask("scontrol", "requeue", f"{array}_0")
    wait_for(lambda: four_shards.is_finished)
    wait_for(lambda: not _ask("squeue", "--noheader"))
    assert four_shards.answers() == written_here
