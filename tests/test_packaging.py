"""The four packages, their wheels, and the rules every module keeps."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.grids import first_of

ROOT = Path(__file__).parents[1]

PACKAGES = [
    "gkd-core",
    "gkd-methods-classic",
    "gkd-methods-intermediate",
    "gkd-methods-multiteacher",
]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
MODULES = sorted(ROOT.glob("gkd-*/src/**/*.py"))
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper"}


def project(package):
    return tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]


def build(source, folder):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    done = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_packages_are_these_four():
    assert sorted(path.parent.name for path in ROOT.glob("*/pyproject.toml")) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_names_the_supported_pythons(package):
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in project(package)["classifiers"]]
    assert [name for name in named if name.startswith("3.")] == PYTHONS
    assert project(package)["requires-python"] == f">={PYTHONS[0]}"


def test_code_is_checked_against_the_lowest_supported_python():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["mypy"]["python_version"] == PYTHONS[0]
    assert tools["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"


@pytest.mark.parametrize("file", ["README.md", "Makefile", "docs/tutorial/first-distillation.md"])
def test_readers_are_told_the_supported_pythons(file):
    told = re.findall(r"Python (3\.\d+) to (3\.\d+)", (ROOT / file).read_text())
    assert told == [(PYTHONS[0], PYTHONS[-1])]


def test_the_readme_installs_all_packages_with_what_its_examples_need():
    (line,) = re.findall(r"^\$ pip install .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [word for option, word in pairwise(shlex.split(line)) if option == "-e"]
    assert sorted(name.removesuffix("[parallel]") for name in named) == PACKAGES
    assert "gkd-core[parallel]" in named


def test_versions_are_in_step():
    import gkd_core

    assert {project(package)["version"] for package in PACKAGES} == {gkd_core.__version__}


@pytest.mark.parametrize("package", PACKAGES)
def test_siblings_are_required_in_a_compatible_version(package):
    siblings = [need for need in project(package)["dependencies"] if need.startswith("gkd-")]
    version = project("gkd-core")["version"]
    names = [need.partition("~=")[0] for need in siblings]
    assert siblings == [f"{name}~={version}" for name in names]
    assert names[:1] == ([] if package == "gkd-core" else ["gkd-core"])
    assert set(names) <= set(PACKAGES) - {package}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_one_plugin(package):
    (name, module), *others = project(package)["entry-points"]["gkd"].items()
    assert not others
    assert name == package.split("-")[-1]
    assert module.split(".")[0] == package.replace("-", "_")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_the_license(package):
    assert (ROOT / package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("package", first_of(PACKAGES))
def test_a_wheel_holds_all_that_the_source_holds(package, tmp_path):
    copy = tmp_path / package
    shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    name = package.replace("-", "_")
    source = {
        path.relative_to(copy / "src").as_posix()
        for path in (copy / "src" / name).rglob("*")
        if path.is_file()
    }
    with ZipFile(build(copy, tmp_path)) as wheel:
        found = {path for path in wheel.namelist() if path.startswith(f"{name}/")}
        (license_,) = (path for path in wheel.namelist() if path.endswith("/licenses/LICENSE"))
        assert wheel.read(license_) == (ROOT / "LICENSE").read_bytes()
    assert found == source
    assert f"{name}/py.typed" in found
    assert package != "gkd-methods-classic" or f"{name}/recipes/pkd.toml" in found


@pytest.mark.exhaustive
@pytest.mark.slow
def test_installing_the_root_says_what_to_install_instead(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-index"]
    for arguments in (["."], ["-e", "."]):
        done = subprocess.run(
            [*command, "--target", tmp_path / "site", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode != 0
        assert "The root of the gkd repository is not a package" in done.stdout + done.stderr
        assert all(package in done.stdout + done.stderr for package in PACKAGES)
    assert not (tmp_path / "site").exists()


def test_no_module_has_a_name_that_says_nothing():
    assert not [path for path in MODULES if VAGUE & {path.stem, path.parent.name}]


def test_every_module_says_what_it_is():
    assert not [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]


OWN_PROCESSES = "gkd_core/testing/ranks.py"
"""Sends calls by pickle to processes that it started itself, and reads no file."""


def test_only_data_formats_that_cannot_run_code_are_read():
    forbidden = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if not path.as_posix().endswith(OWN_PROCESSES):
                assert not forbidden & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
