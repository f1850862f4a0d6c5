"""`make release`: what is built is what an index takes, and each step that fails ends it."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "release.py"


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("release", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.exhaustive
def test_wheels_and_archives_are_built_and_pass_the_check(release, tmp_path):
    (tmp_path / "old-0.1.tar.gz").write_text("of the release before")
    release.check(release.build(tmp_path))
    names = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert names == {package.name.replace("-", "_") for package in release.packages()}
    assert len(list(tmp_path.iterdir())) == 8


def test_packages_of_different_versions_are_no_release(release, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "_run", lambda *_, **__: None)
    names = [f"gkd_{n}-0.2.{n}{suffix}" for n in range(4) for suffix in (".tar.gz", "-py3.whl")]
    with pytest.raises(AssertionError, match="different versions"):
        release.check([tmp_path / name for name in names])


def test_a_step_that_fails_ends_it(release):
    with pytest.raises(subprocess.CalledProcessError):
        release._run("false")
