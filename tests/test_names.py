"""Names of version 0.1 that no other project uses are gone: identifiers, modules, settings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gkd_core.config.schema import RunConfig

ROOT = Path(__file__).parents[1]
OLD = {
    *("Blueprint", "blueprint", "blueprints", "StageKey", "Watch", "find_place"),
    *("own_teacher", "OwnTeacher", "TeacherHome", "teacher_home", "Participant", "participant"),
    *("Combination", "Mixture", "Parking", "parking", "Parked", "Contestant", "contestants"),
    *("conclude", "conclusion", "hand_on", "hands_on", "afresh", "lay", "onlooker", "emphasis"),
    *("Draughtsman", "draughtsman", "draw_run", "draw_stages", "pace", "turns", "Turns"),
    *("take_turns", "OwnDraws", "draws", "Asked", "asked", "Member", "Ledger"),
    *("ledger", "booking", "refusals", "unlocks", "StagePlan", "RunPlan", "plan_stage"),
    *("gkd_check_plan", "Place"),
}
"""The old column of the table of names."""

MODULES = {"finished", "course", "watch", "key", "draws", "plan", "conclusion"}
"""Names that only a module may not have: elsewhere they are ordinary words."""

BRITISH = re.compile(
    r"labell|odell|centred|colour|behaviour|(?:al|el|im|in|ar|or|er|ken|nt)is(?:e|ed|er|es|ing|ation)(?![a-z])"
)
"""Spellings that American English, which all names are in, does not have."""

SOURCES = sorted(
    path
    for pattern in ("gkd-*/src/**/*.py", "docs/examples/**/*.py", "docs/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
    if path.parent.name != "compatibility" and path != Path(__file__)
)


def identifiers(path):
    """Yield every name that a file defines or uses."""
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("name", "id", "attr", "arg", "module", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield from value.split(".")


def test_no_identifier_has_an_old_name_and_all_are_american_english():
    found = ((path, name) for path in SOURCES for name in set(identifiers(path)))
    assert [(str(p), name) for p, name in found if name in OLD or BRITISH.search(name)] == []


def test_no_module_has_an_old_name():
    old = OLD | MODULES
    assert [path for path in SOURCES if path.stem in old and "cli" not in path.parts] == []


def test_no_setting_has_an_old_name():
    schema = RunConfig.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    assert not OLD & {name for table in tables for name in table.get("properties", {})}


@pytest.mark.parametrize("path", sorted(ROOT.glob("gkd-*/**/recipes/*.toml")), ids=lambda p: p.stem)
def test_no_recipe_has_an_old_name(path):
    assert not OLD & set(re.findall(r"^([\w.]+) *=", path.read_text(), re.MULTILINE))


def test_types_of_core_have_names_of_their_own():
    found: dict[str, list[str]] = {}
    for path in sorted(ROOT.glob("gkd-*/src/**/*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
