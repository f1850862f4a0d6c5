"""What `task.check` accepts, says and refuses."""

from __future__ import annotations

import sys

import pytest

from gkd_core.errors import ConfigError, PluginError
from gkd_core.evaluation.answer_check import answer_check


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with functions: `installed("def f(...): ...")`."""

    def _installed(source):
        (tmp_path / "graders").mkdir()
        (tmp_path / "graders" / "__init__.py").write_text("")
        (tmp_path / "graders" / "math.py").write_text(source)
        info = tmp_path / "graders-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: graders\nVersion: 1.0\n")
        (info / "top_level.txt").write_text("graders\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield _installed
    for name in ("graders", "graders.math"):
        sys.modules.pop(name, None)


def test_a_regular_expression_is_looked_for_in_the_answer():
    check = answer_check(r"(?i)\breturns?\b")
    assert check("returns", "It Returns a list.", None) == 1
    assert check("returns", "A list.", "returns") == 0


def test_a_regular_expression_that_never_ends_is_stopped():
    slow = answer_check("^" + "(a*)" * 8 + r"\1\2\3x!")
    with pytest.raises(ConfigError, match="did not finish within 1 s on an answer of 64"):
        slow("", "a" * 60 + "x?x!", None)


def test_what_is_neither_is_refused():
    with pytest.raises(ConfigError, match="is neither a function"):
        answer_check("(open")


def test_a_function_of_an_installed_package_is_asked_by_name(installed):
    installed("def equal(prompt, answer, target):\n    return answer == target + prompt\n")
    check = answer_check("graders.math:equal")
    assert check("!", "4!", "4") == 1
    assert check("!", "4", "4") == 0


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "elsewhere.module:function"])
def test_what_no_installed_package_has_is_refused(name):
    with pytest.raises(ConfigError, match="no installed package has the module"):
        answer_check(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("graders.math:missing", "cannot be imported"),
        ("graders.other:equal", "cannot be imported"),
        ("graders.math:two", "is not a function of prompt, answer, target"),
        ("graders.math:NUMBER", "is not a function of prompt, answer, target"),
    ],
)
def test_what_cannot_be_asked_is_refused(installed, name, said):
    installed("def two(answer, target):\n    return True\n\n\nNUMBER = 3\n")
    with pytest.raises(ConfigError, match=said):
        answer_check(name)


@pytest.mark.parametrize("value", ["'yes'", "2", "float('nan')", "None"])
def test_a_verdict_that_is_none_is_refused(installed, value):
    installed(f"def wrong(prompt, answer, target):\n    return {value}\n")
    with pytest.raises(PluginError, match="not a number from 0 to 1"):
        answer_check("graders.math:wrong")("", "", None)
