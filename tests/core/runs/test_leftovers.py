"""What killed commands have left is found, told from what users have, and cleared up."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_core.errors import ConfigError
from gkd_core.lease import hold
from gkd_core.runs.leftovers import clear, find_leftovers


def _write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def runs(tmp_path):
    """A folder with what the user has, some of which looks like what gkd leaves."""
    folder = tmp_path / "runs"
    for path in ("mine/config.toml", "mine/stages/distil/done.json", "notes.12.tmp"):
        _write(folder / path)
    for path in (".vim.old/a", ".photos.tmp/cat.jpg", ".a.b.old/config.toml", ".door.lease"):
        _write(folder / path)
    return folder


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _found(folder):
    return {
        str(each.path.relative_to(folder)): each.place and each.place.name
        for each in find_leftovers(folder)
    }


def test_what_the_user_has_is_no_leftover(runs):
    assert find_leftovers(runs) == []
    with pytest.raises(ConfigError, match="nothing was left there"):
        find_leftovers(runs / "mine" / "config.toml")


def test_what_was_replaced_or_unfinished_is_removed(runs):
    before = _files(runs)
    _write(runs / ".mine.abc_1234.old/mine/config.toml")
    _write(runs / "mine/.student.old/config.json")
    (runs / "mine/student").mkdir()
    _write(runs / "mine/.best.tmp/model.safetensors")
    _write(runs / "mine/report.html.4711.tmp")
    _write(runs / "mine/stages/distil/done.json.4711.tmp")
    (runs / ".export.tmp").mkdir()
    assert _found(runs) == dict.fromkeys(
        [
            *(".export.tmp", ".mine.abc_1234.old", "mine/.best.tmp", "mine/.student.old"),
            *("mine/report.html.4711.tmp", "mine/stages/distil/done.json.4711.tmp"),
        ]
    )
    clear(find_leftovers(runs))
    assert _files(runs) == before
    assert find_leftovers(runs) == []


def test_what_was_to_be_replaced_is_put_back(runs):
    _write(runs / ".other.abc_1234.old/other/config.toml", "precious")
    _write(runs / "other/log.txt")  # begun, but not trained
    _write(runs / ".export.old/lineage.json", "precious")
    assert _found(runs) == {".export.old": "export", ".other.abc_1234.old/other": "other"}
    clear(find_leftovers(runs))
    assert (runs / "other/config.toml").read_text() == "precious"
    assert (runs / "export/lineage.json").read_text() == "precious"
    assert not list(runs.glob(".other*"))


def test_what_a_live_process_writes_is_left_alone(runs):
    _write(runs / ".mine.abc_1234.old/mine/config.toml")
    _write(runs / "mine/.best.tmp/model.safetensors")
    _write(runs / ".export.tmp/config.json")
    with hold(runs / "mine"), hold(runs / "export"):
        assert find_leftovers(runs) == []
    found = find_leftovers(runs)
    with hold(runs / "export"):
        clear(found)
    assert [str(each.path) for each in find_leftovers(runs)] == [str(runs / ".export.tmp")]


def test_the_folder_may_be_the_current_one(runs, monkeypatch):
    _write(runs / ".export.tmp/config.json")
    (runs / ".link.old").symlink_to(".export.tmp")
    monkeypatch.chdir(runs)
    clear(find_leftovers(Path()))
    assert find_leftovers(Path()) == []
    assert not (runs / ".export.tmp").exists()
    assert not (runs / ".link.old").is_symlink()


def test_the_mark_of_a_killed_process_is_found(runs):
    killed = (
        "import os, sys; from pathlib import Path; from gkd_core.lease import hold\n"
        "with hold(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, runs / "mine"], check=False)
    assert _found(runs) == {".mine.lease": None}
    clear(find_leftovers(runs))
    assert _found(runs) == {}


def test_the_command_lists_and_asks(invoke, runs, monkeypatch):
    assert f"nothing in {runs}" in invoke("clean", "--leftovers", runs).out
    _write(runs / ".export.tmp/model.safetensors", "x" * 2048)
    _write(runs / ".other.abc_1234.old/other/config.toml")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    done = invoke("clean", "--leftovers", runs)
    assert f"{runs}/.export.tmp  " in done.out
    assert f"an unfinished {runs}/export\n" in done.out
    assert "and put back 1? [y/N]: Nothing was changed" in done.out
    assert len(find_leftovers(runs)) == 2
    done = invoke("clean", "--leftovers", runs, "--yes")
    assert done.code == 0, done.err
    assert "Done: remove 1 (" in done.out
    assert (runs / "other/config.toml").exists()
    done = invoke("clean", "--leftovers", runs, "answers")
    assert done.code == 2
    assert "not parts of the cache" in done.err
