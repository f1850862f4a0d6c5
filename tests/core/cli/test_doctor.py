"""`gkd doctor`: what it finds, what is missing, and that it changes nothing."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from gkd_core.cli import installation
from gkd_core.data.cache import cache_entry


def test_it_shows_versions_devices_plugins_extras_and_caches_in_80_columns(invoke, tmp_path):
    entry = cache_entry("answers", "a.safetensors")
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(2048))
    done = invoke("doctor")
    assert done.code == 0, done.err
    for said in ("torch 2.", "cpu  ", "'core' (gkd-core", "parallel  ", "answers: 2.0 KiB"):
        assert said in done.out
    assert max(len(line) for line in done.out.splitlines() if "/" not in line) <= 80
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_as_json_it_says_the_same(invoke, tmp_path):
    done = invoke("doctor", "--json")
    found = json.loads(done.out)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["devices"][0]["cores"] >= 1
    assert found["caches"]["gkd"]["folder"] == str(tmp_path / "cache")
    assert found["caches"]["gkd"]["problem"] is None
    assert found["plugins"]["skipped"] == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_that_cannot_be_is_named(invoke, tmp_path, monkeypatch, place):
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / place))
    found = json.loads(invoke("doctor", "--json").out)["caches"]["gkd"]
    assert found["problem"] == f"{file} is a file"
    done = "".join(invoke("doctor").out.split())
    assert f"{file} is a file, so nothing is kept: set GKD_CACHE to".replace(" ", "") in done
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "deepspeed>=0.19"), ("0.18.1", "deepspeed>=0.19 (here 0.18.1)")],
)
def test_a_missing_package_is_named_with_how_to_install_it(invoke, monkeypatch, version, said):
    stock = metadata.version

    def version_of(name):
        if name != "deepspeed":
            return stock(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(installation.metadata, "version", version_of)
    done = " ".join(invoke("doctor").out.split())
    assert f"missing: {said}: pip install 'gkd-core[parallel]'" in done
    assert "more than one process, parallel.tensor and parallel.zero need" in done


def test_without_an_installed_package_there_are_no_extras(monkeypatch):
    monkeypatch.setattr(installation, "CORE", "gkd-core-of-nobody")
    assert (installation.requirements(), installation.extras()) == ([], {})
