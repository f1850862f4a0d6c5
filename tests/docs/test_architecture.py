"""The page on the architecture speaks of the code that is there."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "gkd-core" / "src" / "gkd_core"
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()


def _layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (order,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {room.strip() for layer in order for room in re.split(r"[:|]", layer)}


@functools.cache
def _defined():
    """Return the names of classes and functions that core defines."""
    return set(_definitions())


def _definitions():
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                yield node.name
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id


def test_every_room_has_a_line():
    rooms = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.M) for name in row.split(", ")}
    missing = _layers() - {name.strip("`") for name in rooms} - {"builtin"}
    assert missing == set()


def test_the_contract_knows_every_room():
    rooms = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - _layers() <= {"__init__", "__pycache__", "py"}


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`([a-z_/]+\.py)`", PAGE))))
def test_every_file_it_names_exists(file):
    assert (CORE / file).exists() or (ROOT / file).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+)`", PAGE))))
def test_every_class_it_names_exists(name):
    assert name in _defined()
