"""`gkd new-method`: the package that it writes works as it is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv

import pytest
from tests import forked

import gkd_core

PYTEST = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.slow
def test_its_tests_pass(invoke, tmp_path):
    done = invoke("new-method", "last-state")
    assert done.code == 0, done.err
    folder = tmp_path / "gkd-method-last-state"
    assert f"cd {folder.name}" in done.out
    flags = ("-p", "no:cacheprovider", "-q", "tests")
    ended = forked.run(PYTEST, *flags, cwd=folder, PYTHONPATH=str(folder))
    assert ended.returncode == 0, ended.stdout
    assert "3 passed" in ended.stdout
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert package["entry-points"]["gkd"] == {"last-state": "gkd_method_last_state"}
    assert package["dependencies"] == [f"gkd-core~={gkd_core.__version__}"]
    assert "gkd run --method last-state+soft" in (folder / "README.md").read_text()


@pytest.mark.exhaustive
def test_it_is_installed_as_its_page_says_and_a_run_uses_it(invoke, tmp_path):
    """In an environment of its own, which sees what is installed here."""
    assert invoke("new-method", "last-state").code == 0
    folder = tmp_path / "gkd-method-last-state"
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    (site / "here.pth").write_text(
        "\n".join(p for p in sys.path if p.endswith(("src", "packages")))
    )
    assert sysconfig.get_path("purelib") in sys.path
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([python, *pip, "-e", folder], check=True)
    main = "from gkd_core.cli import main; main()"
    for command, said in (
        ([python, "-m", "pytest", "-q", "-p", "no:cacheprovider"], "3 passed"),
        ([python, "-c", main, "methods", "last-state"], "gkd-method-last-state 0.1.0"),
        ([python, "-c", main, "explain", "last-state+soft", "--student-layers", "2"], "last-state"),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout


def test_what_stands_at_its_place_is_kept(invoke, tmp_path):
    kept = tmp_path / "mine" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("notes")
    done = invoke("new-method", "last-state", "--output", "mine")
    assert done.code == 2
    assert "mine already exists; name a new directory with --output" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert kept.read_text() == "notes"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LastState", "lower-case words joined by '-'"),
        ("../mine", "lower-case words joined by '-'"),
        ("teacher", "another meaning in the settings"),
        ("pkd", "a method 'pkd' already, of gkd-methods-classic"),
        ("route", "a method 'route' already, of gkd-methods-multiteacher"),
    ],
)
def test_a_name_that_cannot_be_is_refused(invoke, tmp_path, name, reason):
    done = invoke("new-method", name)
    assert done.code == 2
    assert reason in done.err
    assert not list(tmp_path.iterdir())
