"""Whatever a plugin registers, it alone is left out, and what is wrong is said in one message."""

import warnings
from contextlib import suppress
from pathlib import Path

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")

from hypothesis import strategies as st  # noqa: E402
from tests.fuzzing import SECONDS, fuzz, fuzz_for  # noqa: E402

from gkd_core import hookspecs  # noqa: E402
from gkd_core.api import Method, Task, TaskKind, hookimpl  # noqa: E402
from gkd_core.errors import GkdError  # noqa: E402

HOOKS = [name for name in dir(hookspecs) if name.startswith("gkd_register_")]
ALPHABET = "aZ_09 é\u2028\0\x1b\ud800\"'\\[]{}()<>.,:=+-*/|#&!%@\t\r\n"
TEXTS = st.text(ALPHABET, max_size=6)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary())


def _breaks(*arguments):
    raise ValueError("a\x1b[31m\nb" * 1000)


class Whole(Method):
    """A method that works."""

    name = "whole"
    paper = "Nobody, 2026"

    def reads(self, models, step):
        """Read nothing."""
        return []

    def loss(self, student, teacher, batch, step):
        """Add nothing."""
        return {}


def _class(base, attributes):
    with suppress(Exception):  # Python or the base may refuse them already
        return type("Made", (base,), attributes)
    return base


ATTRIBUTES = st.dictionaries(
    st.sampled_from(["name", "paper", "Config", "reads", "loss", "families", "labels", "kinds"]),
    st.one_of(VALUES, st.just(_breaks), st.just(property(_breaks)), st.just({1, "a"})),
)
CLASSES = st.builds(
    _class, st.sampled_from([Whole, Method, Task, TaskKind, object, type]), ATTRIBUTES
)
THINGS = st.one_of(VALUES, CLASSES, st.just(_breaks), st.builds(Path, st.just("no/such")))
RESULTS = st.one_of(THINGS, st.lists(THINGS, max_size=3), st.dictionaries(TEXTS, THINGS))


def _plugin(hook, result):
    return type("Fuzzed", (), {hook: staticmethod(hookimpl(specname=hook)(lambda: result))})()


PARTS = ("methods", "combiners", "tasks", "optimizers", "kinds", "sites", "commands", "recipes")


def _checker(registry_with, hook):
    """Return what checks that a result of a hook hurts no other plugin."""

    def check(result):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            registry = registry_with(_plugin(hook, result))
            with suppress(GkdError):
                for part in PARTS:
                    getattr(registry, part)
            assert {"soft", "pkd"} <= registry.methods.keys()
            assert {"classification", "causal-lm"} <= registry.kinds.keys()
        for warning in said:
            text = str(warning.message)
            assert "plugin 'test'" in text
            assert len(text) <= 2048
            assert not any(ord(letter) < 32 and letter != "\n" for letter in text)

    return check


@pytest.mark.parametrize("hook", HOOKS)
def test_whatever_is_registered_hurts_no_other_plugin(registry_with, hook):
    fuzz(RESULTS, _checker(registry_with, hook), 3, deadline=None)


@pytest.mark.exhaustive
@pytest.mark.parametrize("hook", HOOKS)
def test_whatever_is_registered_hurts_no_other_plugin_for_long(registry_with, hook):
    fuzz(RESULTS, _checker(registry_with, hook), 60, deadline=None)


@pytest.mark.campaign
def test_whatever_is_registered_hurts_no_other_plugin_whatever_is_new(registry_with):
    for hook in HOOKS:
        print(hook, end=": ")
        fuzz_for(SECONDS / len(HOOKS), RESULTS, _checker(registry_with, hook))
