"""The seam of kinds: nothing outside of `gkd_core.kinds` depends on which kind a task is of."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

import gkd_core
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry

CORE = Path(gkd_core.__file__).parent
NAMES = {"lm", *registry().kinds}
FILES = [path for path in CORE.rglob("*.py") if path.parent.name != "kinds"]
METHODS = list(CORE.parents[2].glob("gkd-methods-*/src/**/*.py"))


def _compared(text):
    """Yield each pair of operands of a comparison."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            yield from itertools.pairwise(operands)


def _names_kind(node, other):
    """Whether an operand is the name of a kind; `embedding` is a place in a model, too."""
    entries = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    names = {entry.value for entry in entries if isinstance(entry, ast.Constant)} & NAMES
    return bool(names - {"embedding"}) or (bool(names) and "kind" in ast.unparse(other))


def _guesses(left, right):
    """Whether a comparison tells a language model by its shapes."""
    one, other = ast.unparse(left), ast.unparse(right)
    return (one.endswith(".dim()") and other == "3") or (
        one.endswith(".labels") and other.endswith(".vocab_size")
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kind == 'regression'", True),
        ("data.kind in ('masked-lm', 'causal-lm')", True),
        ("student.dim() == 3", True),
        ("info.labels == info.vocab_size", True),
        ("kind.name == 'embedding'", True),
        ("part == 'embedding'", False),
        ("kind.is_lm", False),
        ("name == 'files'", False),
    ],
)
def test_a_comparison_is_recognized(text, found):
    pairs = list(_compared(text))
    named = [_names_kind(x, y) or _names_kind(y, x) or _guesses(x, y) for x, y in pairs]
    assert any(named) is found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_no_file_of_core_asks_which_kind_it_is(path):
    for left, right in _compared(path.read_text(encoding="utf-8")):
        shown = f"{ast.unparse(left)} with {ast.unparse(right)}"
        assert not _names_kind(left, right), shown
        assert not _names_kind(right, left), shown
        assert not _guesses(left, right), shown


def test_no_method_guesses_from_shapes_whether_it_is_a_language_model():
    assert METHODS
    for path in METHODS:
        for left, right in _compared(path.read_text(encoding="utf-8")):
            assert not _guesses(left, right), f"{path.name}: {ast.unparse(left)}"


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"'clasification'.*Did you mean 'classification'"):
        registry().kind("clasification")


def test_every_kind_says_what_it_is():
    for name, kind in registry().kinds.items():
        assert str(kind) == name
        assert kind == type(kind)()
        assert type(kind).__doc__
        assert kind.metric.name in kind.metrics
        assert kind.head
        assert kind.configs


def test_kinds_are_listed_with_their_plugin(invoke):
    done = invoke("kinds")
    assert done.code == 0, done.err
    assert "regression" in done.out
    assert "gkd-core" in done.out


def test_an_unknown_kind_in_the_configuration_is_refused(invoke):
    done = invoke("explain", "--set", "task.kind=clasification")
    assert done.code == 2
    assert "task.kind must be 'lm', 'causal-cloze', 'causal-lm'" in done.err
    assert "got 'clasification' (--set). Did you mean 'classification'?" in done.err
