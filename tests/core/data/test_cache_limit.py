"""A cache that is too large loses what was not used for longest, but nothing that is in use."""

import os
import signal

import pytest
from tests import forked

from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.data.cache_limit import USES, cache_limit, shrink_cache, use_entry
from gkd_core.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A new cache that may have 3,000 bytes."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GKD_CACHE_SIZE", "3000")
    return tmp_path / "cache"


def _fill(room, name, age, size=1000):
    path = cache_entry(room, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def _there(folder):
    return sorted(path.name for path in folder.glob("*/*") if path.parent.name != USES)


def test_what_was_not_used_for_longest_goes_first(folder):
    for age, room in enumerate(("answers", "stages", "embedded", "augmented")):
        _fill(room, f"{age}.json", age)
    shrink_cache()
    assert _there(folder) == ["0.json", "1.json", "2.json"]
    shrink_cache()
    assert _there(folder) == ["0.json", "1.json", "2.json"], "it is within its limit"


def test_reading_an_entry_makes_it_young(folder):
    write_entry(cache_entry("stages", "read.json"), ["mine"])
    os.utime(cache_entry("stages", "read.json"), (1, 1))
    for age in range(4):
        _fill("answers", f"{age}.safetensors", age, 900)
    assert read_entry(cache_entry("stages", "read.json"), list) == ["mine"]
    shrink_cache()
    assert _there(folder) == ["0.safetensors", "1.safetensors", "2.safetensors", "read.json"]


def test_directories_go_whole_and_what_is_no_entry_stays(folder):
    old = cache_entry("teachers", "old")
    for model in ("trained", "untrained"):
        (old / model).mkdir(parents=True)
        (old / model / "model.safetensors").write_bytes(bytes(2000))
    os.utime(old, (1, 1))
    kept = [_fill("answers", name, 10**8) for name in ("a.lock", "b.17.tmp")]
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_bytes(bytes(5000))
    shrink_cache()
    assert not old.exists()
    assert _there(folder) == ["a.lock", "b.17.tmp", "notes.txt"]
    assert all(path.exists() for path in kept)


USING = """
import os, sys, signal
from pathlib import Path
from gkd_core.data.cache import cache_entry
from gkd_core.data.cache_limit import use_entry
use_entry(cache_entry("answers", "used"))
print("using", flush=True)
signal.pause()
"""


def test_what_a_live_run_uses_stays_until_it_is_gone(folder, tmp_path):
    _fill("answers", "used", 10**8)
    for age in range(4):
        _fill("stages", f"{age}.json", age)
    said = tmp_path / "out", tmp_path / "err"
    process = forked.start(USING, cwd=tmp_path, said=said)
    while not (said[0].exists() and said[0].read_text()):
        assert process.is_alive(), said[1].read_text()
    os.utime(folder / "answers" / "used", (1, 1))
    shrink_cache()
    assert _there(folder) == ["0.json", "1.json", "used"]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _fill("stages", "4.json", 10)
    shrink_cache()
    assert _there(folder) == ["0.json", "1.json", "4.json"]
    assert list((folder / USES).glob("*.txt")) == []


def test_own_entries_are_kept_until_another_cache_is_used(folder, tmp_path, monkeypatch):
    use_entry(cache_entry("teachers", "mine"))
    _fill("teachers", "mine", 10**8, 4000)
    shrink_cache()
    assert _there(folder) == ["mine"]
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "other"))
    use_entry(cache_entry("teachers", "mine"))
    assert [path.name for path in (folder / USES).iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_left_alone(folder):
    folder.write_text("a file where the cache should be")
    use_entry(folder / "answers" / "a")
    shrink_cache()
    assert folder.read_text() == "a file where the cache should be"


def test_limit_that_is_no_size_is_refused_before_a_run(invoke, monkeypatch):
    monkeypatch.setenv("GKD_CACHE_SIZE", "large")
    with pytest.raises(ConfigError, match="GKD_CACHE_SIZE = 'large' is not a size"):
        cache_limit()
    done = invoke("explain", "soft")
    assert done.code == 2
    assert "GKD_CACHE_SIZE=100GiB" in done.err
