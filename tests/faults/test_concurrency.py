"""Several commands at once on one directory: one goes on, the others say who holds it."""

import os
import re
import signal
import time

import pytest
from tests.faults.trials import assert_same_students, run, start, students, wait_for

CHECKPOINT = "out/stages/*/checkpoints/step-????????"
HELD = (
    r"Error: \S+/out is being written by process (\d+) on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
)

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The folder of a run that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole")
    status, said, _ = run(folder, "run", *rows, "--output", folder / "out")
    assert status == 0, said
    return folder


@pytest.fixture
def stopped(rows, tmp_path):
    """The folder of a run that was killed when it had a checkpoint."""
    started = start(tmp_path, "run", *rows, "--output", tmp_path / "out", slow=200)
    wait_for(tmp_path, CHECKPOINT, started)
    started.send(signal.SIGKILL)
    started.end()
    return tmp_path


def _assert_one_goes_on(started):
    """All but one are refused, and name the one that goes on, or that it had finished."""
    ended = [each.end() for each in started]
    alone = [each for each, (status, _) in zip(started, ended, strict=True) if status == 0]
    assert len(alone) == 1, ended
    for status, said in ended:
        assert "Traceback" not in said
        if status != 0:
            assert status == 2, said
            assert int(re.search(HELD, said)[1]) == alone[0].process.pid
    return alone[0]


@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("count", [2, 4])
def test_of_several_resumed_at_once_one_goes_on(stopped, whole, count, trial):
    again = ("run", "--resume", "--output", stopped / "out")
    started = []
    for _ in range(count):
        started.append(start(stopped, *again, slow=500))
        time.sleep(0.02 * trial)
    _assert_one_goes_on(started)
    assert_same_students(stopped / "out", whole / "out")


@pytest.mark.parametrize("trial", range(5))
def test_of_two_new_ones_in_one_place_one_goes_on(rows, whole, tmp_path, trial):
    started = []
    for _ in range(2):
        new = ("run", *rows, "--output", tmp_path / "out")
        started.append(start(tmp_path, *new, slow=300))
        time.sleep(0.02 * trial)
    ended = [each.end() for each in started]
    assert sorted(status for status, _ in ended) == [0, 2], ended
    said = max(ended)[1]
    assert re.search(HELD, said) or "already exists" in said
    assert_same_students(tmp_path / "out", whole / "out")


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 2.0])
def test_live_run_is_not_overwritten(rows, whole, tmp_path, moment):
    live = start(tmp_path, "run", *rows, "--output", tmp_path / "out", slow=400)
    wait_for(tmp_path, "out/config.toml", live)
    time.sleep(moment)
    other = ("run", *rows, "--seed", 2, "--overwrite", "--output", tmp_path / "out")
    assert _assert_one_goes_on([live, start(tmp_path, *other)]) is live
    assert_same_students(tmp_path / "out", whole / "out")
    assert [path.name for path in tmp_path.glob(".out*")] == []


@pytest.mark.parametrize("trial", range(5))
def test_of_two_that_overwrite_at_once_one_goes_on(rows, whole, tmp_path, trial):
    first = run(tmp_path, "run", *rows, "--seed", 2, "--output", tmp_path / "out")
    assert first[0] == 0, first
    started = []
    for _ in range(2):
        new = ("run", *rows, "--overwrite", "--output", tmp_path / "out")
        started.append(start(tmp_path, *new, slow=300))
        time.sleep(0.02 * trial)
    _assert_one_goes_on(started)
    assert_same_students(tmp_path / "out", whole / "out")
    assert [path.name for path in tmp_path.glob(".out*")] == []


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_killed_run_is_resumed_at_once(rows, whole, tmp_path, moment):
    killed = start(tmp_path, "run", *rows, "--output", tmp_path / "out", slow=150)
    wait_for(tmp_path, CHECKPOINT, killed)
    time.sleep(moment)
    os.kill(killed.process.pid, signal.SIGKILL)
    status, said = start(tmp_path, "run", "--resume", "--output", tmp_path / "out").end()
    assert status == 0, said
    assert "waiting" not in said
    assert len(students(tmp_path / "out")) == len(students(whole / "out"))
    assert_same_students(tmp_path / "out", whole / "out")
