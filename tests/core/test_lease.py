"""One process at a time holds what a lease is about, and the others are told which."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gkd_core import lease
from gkd_core.errors import ConfigError
from gkd_core.lease import LeaseLost, hold, holder, is_inherited, refuse_held

SINCE = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def _marker(tmp_path, host="elsewhere", duration=60.0):
    marker = tmp_path / ".run.lease"
    marker.write_text(
        f"filelock/2\npid=4\nhost={host}\nmode=lease\ntoken=other\nduration={duration}\nstart=7\n"
        "since=2026-01-02 03:04:05\n"
    )
    return marker


def test_a_lease_is_held_by_one_and_released(tmp_path):
    run = tmp_path / "runs" / "run"
    assert holder(run) is None
    with hold(run) as held:
        held.check()
        found = str(holder(run))
        assert re.fullmatch(f"process {os.getpid()} on {socket.gethostname()} {SINCE}", found)
        for refused in (refuse_held, lambda path: hold(path).__enter__()):
            with pytest.raises(ConfigError, match=f"is being written by {re.escape(found)}. Wait"):
                refused(run)
        held.check()
    assert holder(run) is None
    assert list(run.parent.iterdir()) == []


def test_a_lease_passes_on_at_once_if_its_holder_was_killed(tmp_path):
    killed = (
        "import os, sys; from pathlib import Path; from gkd_core.lease import hold\n"
        "with hold(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", killed, tmp_path / "run"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / ".run.lease").exists()
    assert holder(tmp_path / "run") is None
    with hold(tmp_path / "run") as held:
        held.check()


def test_a_silent_holder_on_another_machine_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "DURATION", 0.3)
    _marker(tmp_path, duration=0.3)
    said = "was being written by process 4 on elsewhere since 2026-01-02 03:04:05: waiting"
    with pytest.warns(UserWarning, match=said), hold(tmp_path / "run") as held:
        held.check()


def test_a_holder_on_another_machine_that_gives_a_sign_of_life_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "DURATION", 3.0)
    marker = _marker(tmp_path, duration=3.0)
    beat = threading.Timer(0.2, os.utime, (marker, (time.time() + 5,) * 2))
    beat.start()
    with (
        pytest.warns(UserWarning, match="waiting for a sign of life"),
        pytest.raises(ConfigError, match="is being written by process 4 on elsewhere"),
        hold(tmp_path / "run"),
    ):
        pass
    beat.join()
    assert "token=other" in marker.read_text()


def test_who_waits_for_a_lease_gets_it_once_it_is_released(tmp_path):
    order = []

    def wait():
        with hold(tmp_path / "run", wait=True) as held:
            held.check()
            order.append("second")

    second = threading.Thread(target=wait)
    with hold(tmp_path / "run"):
        second.start()
        time.sleep(0.2)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]


def test_who_lost_a_lease_is_told_to_whom(tmp_path):
    run = tmp_path / "run"
    with hold(run) as held:
        (tmp_path / ".run.lease").unlink()
        marker = _marker(tmp_path)
        with pytest.raises(LeaseLost, match="has passed to process 4 on elsewhere since 2026"):
            held.check()
    assert marker.exists(), "it belongs to the other process"


def test_a_rank_takes_part_in_the_lease_of_its_launcher(tmp_path, monkeypatch):
    with hold(tmp_path / "run") as held:
        monkeypatch.setenv("GKD_LEASE", held.token)
        refuse_held(tmp_path / "run")
        with hold(tmp_path / "run") as mine:
            mine.check()
        held.check()
        assert is_inherited(tmp_path / "run")
        assert not is_inherited(tmp_path / "other")
        with hold(tmp_path / "other") as other:
            assert other.token != held.token


def test_a_lease_of_a_mounted_directory_lies_within(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with hold(run):
        assert [path.name for path in run.iterdir()] == [".run.lease"]


def test_where_no_marker_can_be_written_the_path_and_its_option_are_named(tmp_path):
    path = tmp_path / ("long" * 63)
    with pytest.raises(OSError, match=path.name) as raised, hold(path, "--to"):
        pass
    assert "lease" not in str(raised.value)
    assert raised.value.__notes__ == ["Choose another place with --to"]
