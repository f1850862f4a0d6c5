"""Runs that signals and time limits stop at any moment go on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tests.faults.trials import (
    assert_same_students,
    go_on,
    run,
    run_killed,
    start,
    start_ranks,
    wait_for,
)

from gkd_core.runs.directory import has_trained

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
CHECKPOINT = "out/stages/*/checkpoints/step-????????"
AGAIN = 0.7
"""Seconds after which a signal is no longer an echo of the one before."""

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The folder of a run that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole")
    status, said, _ = run(folder, "run", *rows, "--output", folder / "out")
    assert status == 0, said
    return folder


@pytest.fixture(scope="module")
def whole_on_two(rows, tmp_path_factory):
    """The folder of such a run on two ranks."""
    folder = tmp_path_factory.mktemp("whole-on-two")
    run_killed(folder, "run", *rows, "--output", folder / "out", after=0, ranks=2, victims=())
    return folder


def _new(rows, folder):
    return ("run", *rows, "--output", folder / "out")


def _assert_told(folder, status, said):
    """Status 75 says that something is saved, 130 that nothing is."""
    assert "Traceback" not in said
    assert status in (0, 75, 130), said
    if status != 0:
        assert status == (75 if has_trained(folder / "out") else 130)
        assert said.count("Error: ") == 1


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_at_any_moment_loses_nothing(rows, whole, tmp_path, number, moment):
    started = start(tmp_path, *_new(rows, tmp_path), slow=150)
    wait_for(tmp_path, "out", started)
    time.sleep(random.Random(f"{number} {moment}").uniform(0, 3))
    started.send(number)
    status, said = started.end()
    _assert_told(tmp_path, status, said)
    go_on(tmp_path, said, status, rows)
    assert_same_students(tmp_path / "out", whole / "out")


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS[:2])
def test_second_signal_stops_at_once_and_the_checkpoint_before_is_whole(
    rows, whole, tmp_path, first, second
):
    started = start(tmp_path, *_new(rows, tmp_path), slow=3000)
    wait_for(tmp_path, CHECKPOINT, started)
    before = sorted(tmp_path.glob(CHECKPOINT))
    started.send(first)
    time.sleep(AGAIN)
    started.send(second)
    status, said = started.end()
    assert status == 75, said
    assert f"Error: interrupted by {second.name}. Continue with: gkd run --resume" in said
    assert sorted(tmp_path.glob(CHECKPOINT)) == before
    go_on(tmp_path, said, status, rows)
    assert_same_students(tmp_path / "out", whole / "out")


@pytest.mark.parametrize("seconds", ["1s", "2s", "3s"])
def test_run_in_slices_of_time_ends_as_one(rows, whole, tmp_path, seconds):
    limit = ("--max-time", seconds)
    status, said = start(tmp_path, *_new(rows, tmp_path), *limit, slow=150).end()
    slices = 1
    while status == 75:
        again = ("run", "--resume", "--output", tmp_path / "out", *limit)
        status, said = start(tmp_path, *again, slow=150).end()
        slices += 1
        assert slices < 30, said
    if status == 130:
        go_on(tmp_path, said, status, rows)
    else:
        assert status == 0, said
    assert_same_students(tmp_path / "out", whole / "out")


def test_what_nohup_ignores_stops_nothing(rows, whole, tmp_path):
    command = ["nohup", sys.executable, "-m", "gkd_core.cli", *map(str, _new(rows, tmp_path))]
    own = os.environ | {"GKD_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (tmp_path / "out").exists():
            time.sleep(0.01)  # nohup must have begun to ignore it
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
    assert process.returncode == 0
    assert_same_students(tmp_path / "out", whole / "out")


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("number", SIGNALS)
def test_ranks_of_which_some_are_told_stop_at_one_step(rows, whole_on_two, tmp_path, number, told):
    started = start_ranks(tmp_path, 2, *_new(rows, tmp_path), slow=300)
    wait_for(tmp_path, CHECKPOINT, started[0])
    time.sleep(random.Random(f"{number} {told}").uniform(0, 1))
    for rank in told:
        started[rank].send(number)
    ended = [each.end() for each in started]
    assert {status for status, _ in ended} == {75}, ended
    assert "".join(said for _, said in ended).count("Error: ") == 1, ended
    again = ("run", "--resume", "--output", tmp_path / "out")
    run_killed(tmp_path, *again, after=0, ranks=2, victims=())
    assert_same_students(tmp_path / "out", whole_on_two / "out")


@pytest.mark.parametrize("number", SIGNALS[:3])
def test_launcher_and_its_ranks_are_told_at_once(rows, whole_on_two, tmp_path, number):
    more = ("--nproc", 2, "--set", "training.epochs=40", "--set", "training.checkpoint_every=20")
    started = start(tmp_path, *_new(rows, tmp_path), *more, before="import os; os.setsid()")
    wait_for(tmp_path, CHECKPOINT, started)
    os.killpg(started.process.pid, number)
    status, said = started.end()
    assert status == 75, said
    assert said.count("Error: ") == 1
    assert f"stopped by {number.name} after step" in said
    newest = max(tmp_path.glob(CHECKPOINT))
    assert f"after step {int(newest.name[5:])} of stage {newest.parent.parent.name}" in said
