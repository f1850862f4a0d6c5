"""Files and directories are whole under their own name, whenever writing them fails."""

import pytest
import torch
from safetensors.torch import save_file

from gkd_core import atomic


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    atomic.write_file(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    atomic.write_file(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_file_that_was_there_and_no_draft(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_file(path, "before")
    with pytest.raises(OSError, match="full"):
        _fail_half_way(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def _fail_half_way(path):
    with atomic.draft(path) as aside:
        aside.write_text("half")
        raise OSError("full")


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = atomic.os.fsync, atomic.os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda file: (done.append("flush"), fsync(file)))
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    atomic.write_file(tmp_path / "file.txt", "text")
    assert done == ["flush", "rename", "flush"]


def test_a_directory_takes_the_place_of_another(tmp_path):
    for name in ("there", "aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    atomic.replace_directory(tmp_path / "aside", tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["aside"]


def test_weights_have_the_mode_of_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "MODE", 0o640)
    folder = tmp_path / "aside"
    folder.mkdir()
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o600
    atomic.publish(folder, tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").stat().st_mode & 0o777 == 0o640
