"""`gkd clean`: it asks, removes what is named, and leaves what live runs use."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest

from gkd_core.data.cache import cache_entry
from gkd_core.data.cache_limit import use_entry


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A cache with an entry of 1 KiB in each of three rooms, and what is being written."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    for place in ("answers/a.safetensors", "stages/s.json", "teachers/t/trained/weights"):
        path = cache_entry(*place.split("/", 1))
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1024))
    cache_entry("answers", "b.1.tmp").write_bytes(bytes(10))
    return tmp_path / "cache"


def there(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".uses" not in path.parts)
    return sorted(path.name for path in files)


def test_it_shows_sizes_and_asks(invoke, filled, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    done = invoke("clean")
    assert done.code == 0, done.err
    assert "  answers   1 entry  1.0 KiB  last used today" in done.out
    assert f"from {filled}? [y/N]: Nothing was removed" in done.out
    assert there(filled) == ["a.safetensors", "b.1.tmp", "s.json", "weights"]


def test_without_an_answer_nothing_is_removed(invoke, filled, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = invoke("clean")
    assert done.code == 2
    assert "there was no answer, so nothing was removed; add --yes" in done.err
    assert "weights" in there(filled)


def test_it_removes_what_is_named_without_asking(invoke, filled):
    done = invoke("clean", "answers", "stages", "--yes")
    assert done.out.splitlines()[-1] == f"Removed 2.0 KiB from {filled}"
    assert there(filled) == ["b.1.tmp", "weights"]
    assert "There is nothing to remove" in invoke("clean", "answers").out


def test_what_a_live_run_uses_stays(invoke, filled):
    use_entry(cache_entry("teachers", "t"))
    done = invoke("clean", "--yes")
    assert "of it is kept, because live runs use it" in done.out
    assert there(filled) == ["b.1.tmp", "weights"]
    assert invoke("clean").code == 0, "there is nothing to ask"


def test_an_unknown_part_is_refused(invoke, filled):
    done = invoke("clean", "teacher")
    assert done.code == 2
    assert "the cache has no part 'teacher'" in done.err
    assert "Did you mean 'teachers'?" in done.err


def test_what_a_killed_process_left_is_removed_when_nothing_was_written_for_an_hour(invoke, filled):
    left = filled / "answers" / "b.1.tmp"
    os.utime(left, (time.time() - 2 * 60 * 60,) * 2)
    assert invoke("clean", "answers", "--yes").code == 0
    assert there(filled) == ["s.json", "weights"]


def test_a_cache_that_is_a_file_is_named(invoke, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "file"))
    done = invoke("clean", "--yes")
    assert done.code == 2
    assert f"GKD_CACHE = '{tmp_path / 'file'}' is a file; name a folder" in done.err
    assert (tmp_path / "file").read_text() == "mine"
