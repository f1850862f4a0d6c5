"""The example plugin, installed as a stranger would install it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tests import forked

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gkd-method-cosine"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the example's folder, with the installed plugin in its `site`."""
    folder = tmp_path_factory.mktemp("example") / "gkd-method-cosine"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--quiet", "--target", folder / "site", folder], check=True)
    return folder


@pytest.mark.exhaustive
def test_its_own_tests_pass(copy):
    code = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    flags = ["-p", "no:cacheprovider", "-q", "tests"]
    done = forked.run(code, *flags, cwd=copy, PYTHONPATH=str(copy / "site"))
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_its_method_is_shown(gkd, copy):
    done = gkd("methods", "cosine", PYTHONPATH=str(copy / "site"))
    assert done.returncode == 0, done.stderr
    assert "gkd-method-cosine 0.1.0" in done.stdout
    assert "cosine.layers" in done.stdout


@pytest.mark.exhaustive
def test_its_method_is_combined_with_a_built_in_one(gkd, settings, copy, tmp_path):
    output = tmp_path / "run"
    narrow = ["--set", "student.hidden_size=16", "--set", "student.heads=2"]
    flags = ["--method", "cosine+soft", *settings, *narrow, "--output", output]
    done = gkd("run", *flags, PYTHONPATH=str(copy / "site"))
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any({"loss/cosine", "loss/soft"} <= entry.keys() for entry in logged)
    with safe_open(output / "student" / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "project" in name]  # noqa: SIM118
    assert json.loads((output / "student" / "config.json").read_text())["hidden_size"] == 16
