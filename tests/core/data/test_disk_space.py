"""What does not fit on a disk is refused before it is written."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from gkd_core.data.disk_space import check_space, free_space
from gkd_core.errors import ConfigError

Usage = namedtuple("Usage", "total used free")


def test_the_space_is_that_of_the_disk_on_which_a_folder_will_be(tmp_path, monkeypatch):
    assert free_space(tmp_path / "not" / "there") == free_space(tmp_path) > 0
    places = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: places.append(place) or Usage(3, 2, 1))
    assert free_space(tmp_path / "not" / "there") == 1
    assert places == [tmp_path]
    monkeypatch.chdir(tmp_path)
    free_space(Path("relative"))
    assert places[1] == tmp_path


def test_an_unknown_space_is_no_obstacle(tmp_path, monkeypatch):
    def fails(place):
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", fails)
    check_space(tmp_path, 1e30, "answers", "")


def test_more_than_is_free_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 3 * 2**29))
    check_space(tmp_path, 3 * 2**29, "answers", "")
    with pytest.raises(ConfigError, match=r"answers: about 2.0 GiB .*with 1.5 GiB free. Free some"):
        check_space(tmp_path, 2**31, "answers", "Free some.")
