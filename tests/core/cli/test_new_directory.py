import pytest

from gkd_core.cli.new_directory import new_directory
from gkd_core.errors import ConfigError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_directory_may_be_missing_or_empty(home):
    (home / "empty").mkdir()
    for name in ("missing", "empty"):
        assert new_directory(f"~/{name}") == home / name


def test_what_is_there_stays(home):
    (home / "file").write_text("mine")
    (home / "full").mkdir()
    (home / "full/mine").touch()
    for name in ("file", "full"):
        with pytest.raises(ConfigError, match=f"/{name} already exists; name a new directory"):
            new_directory(f"~/{name}")
