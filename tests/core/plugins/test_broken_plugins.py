"""A broken plugin, or the part of it that is broken, is named and left out; all others go on."""

import importlib
import os
import re
import signal
import sys
import warnings

import pytest

from gkd_core.errors import ConfigError, MethodError

HEAD = "from gkd_core.api import Method, Procedure, TeacherCombiner, hookimpl\n"
CLASS = '''
class X(Method):
    """A method."""

    name = "x"
    paper = "Nobody, 2026"

    def reads(self, models, step):
        return []

    def loss(self, student, teacher, batch, step):
        return {}
'''


def registers(result="[X]", hook="gkd_register_methods"):
    return f"\n@hookimpl\ndef {hook}():\n    return {result}\n"


def with_hook(code):
    """Return a plugin with a method, and with more code."""
    return f"{HEAD}{CLASS}{registers()}\n{code}\n"


def with_method(old, new):
    """Return a plugin whose method has something else than it should."""
    assert old in CLASS
    return f"{HEAD}{CLASS.replace(old, new)}{registers()}"


@pytest.fixture
def try_with(install, load, method):
    """Load a plugin `bad` beside a good one; return what was said and the registry."""

    def _try(source, ask=("methods",), **more):
        install("gkd-bad", bad=source, **more)
        install("gkd-fine", fine=method("fine"))
        with warnings.catch_warnings(record=True) as said:
            warnings.resetwarnings()
            warnings.simplefilter("always")
            registry = load()
            for things in ask:
                getattr(registry, things)
        assert "fine" in registry.methods
        return [" ".join(str(warning.message).split()) for warning in said], registry

    return _try


WHOLE = {
    "raises": ("raise ValueError('one\\ntwo')", r"ValueError: one two \(.*\.py, line 1, in "),
    "cannot be parsed": ("def (:", "SyntaxError"),
    "ends the process": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "raises a base exception": ("class B(BaseException): ...\nraise B('x')", "B: x"),
    "raises what cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise KeyError\nraise E",
        "E: <its message cannot be read>",
    ),
    "recurses": ("def f(): f()\nf()", "RecursionError"),
    "is for another contract": ("GKD_API_VERSION = 3", "written for version 3"),
    "has no hook": (HEAD, "implements no hook"),
    "does not mark a hook": (
        with_hook("def gkd_step_end(run): ..."),
        "`gkd_step_end` has the name of a hook, but gkd does not call it: mark it with `@hookimpl`",
    ),
    "does not mark what may be a hook": (
        with_hook("def gkd_finish(run): ..."),
        "`gkd_finish` has the name of a hook, but",
    ),
    "marks no function": (
        f"{HEAD}class K:\n    def __call__(self): ...\ngkd_step_end = hookimpl(K())",
        "`gkd_step_end` is not a function",
    ),
    "has a misspelt hook": (
        with_hook("@hookimpl\ndef gkd_step_ends(run): ..."),
        "unknown hook 'gkd_step_ends'. Did you mean 'gkd_step_end'?",
    ),
    "has an unknown argument": (
        with_hook("@hookimpl\ndef gkd_step_end(run, loses): ..."),
        "`gkd_step_end` takes `loses`, but it has run, stage, step, losses",
    ),
    "has a default for an argument": (
        with_hook("@hookimpl\ndef gkd_step_end(run, losses=None): ..."),
        "has a default for `losses`",
    ),
    "takes any arguments": (
        with_hook("@hookimpl\ndef gkd_step_end(**all): ..."),
        "takes `**all`",
    ),
    "is asynchronous": (with_hook("@hookimpl\nasync def gkd_step_end(run): ..."), "is async"),
    "yields where nobody listens": (
        with_hook("@hookimpl\ndef gkd_step_end(run):\n    yield"),
        "has a `yield`, so its body is never run",
    ),
    "wraps what is asked one by one": (
        f"{HEAD}@hookimpl(wrapper=True)\ndef gkd_register_methods():\n    yield\n    return []",
        "cannot be a wrapper",
    ),
    "fails when looked at": (
        f"{HEAD}def __getattr__(name): raise RuntimeError(name)",
        "RuntimeError: GKD_API_VERSION",
    ),
    "has a class without a name": (with_method('name = "x"', ""), "`name` must be"),
    "has options that are no class": (
        with_method('name = "x"', 'name = "x"\n    Config = {"a": 1}'),
        "`Config` must be a subclass of `Method.Config`",
    ),
    "has a class whose attribute raises": (
        with_method(
            '"Nobody, 2026"',
            "type('D', (), {'__get__': lambda *_: {}['no']})()",
        ),
        "KeyError: 'no'",
    ),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_plugin_that(what, try_with):
    source, message = WHOLE[what]
    said, registry = try_with(source)
    assert len(said) == 1
    assert said[0].startswith("plugin 'bad' (gkd-bad 1.2) was skipped: ")
    assert message in said[0] or re.search(message, said[0])
    assert list(registry.plugins) == ["fine"]
    with pytest.raises(MethodError, match=r"unknown method 'x'.*plugin 'bad' \(gkd-bad 1.2\)"):
        registry.method("x")


RETURNED = {
    "'abc'": "it returned 'abc' instead of a list",
    "object()": "it returned <object objec",
    "None": "it returned None instead of a list",
    "X": "it returned <class 'plugi",
    "{'x': X}": "instead of a list",
    "[].pop()": "IndexError: pop from empty list",
    "exit(0)": "SystemExit: 0",
}


@pytest.mark.parametrize("result", RETURNED)
def test_what_a_registration_hook_returns_is_a_list(result, try_with):
    said, _ = try_with(f"{HEAD}{CLASS}{registers(result)}")
    assert len(said) == 1
    assert said[0].startswith("gkd_register_methods of plugin 'bad' (gkd-bad 1.2) was skipped: ")
    assert RETURNED[result] in said[0]


@pytest.mark.parametrize(
    ("hook", "things"),
    [
        ("gkd_register_methods", "methods"),
        ("gkd_register_combiners", "combiners"),
        ("gkd_register_recipes", "recipes"),
        ("gkd_register_sites", "sites"),
        ("gkd_register_tasks", "tasks"),
        ("gkd_register_teachers", "answer_sources"),
        ("gkd_register_optimizers", "optimizers"),
        ("gkd_register_rollouts", "rollout_engines"),
        ("gkd_register_kinds", "kinds"),
        ("gkd_register_commands", "commands"),
    ],
)
def test_each_registration_hook_is_checked(hook, things, try_with):
    said, registry = try_with(f"{HEAD}{registers('[3, object, str]', hook)}", ask=[things])
    assert len(said) == 3
    assert all("plugin 'bad' (gkd-bad 1.2) was skipped" in line for line in said)
    assert "returned 3, which is not a" in said[0]
    assert set(getattr(registry, things)) <= {"fine"}


PARTS = {
    "an object": (f"{HEAD}{CLASS}{registers('[X()]')}", "return a subclass of Method"),
    "another kind": (
        f"{HEAD}class C(Procedure):\n    name = 'c'\n    paper = 'p'\n    stages = list\n"
        f"{registers('[C]')}",
        r"returned the procedure plugin_.*C; return it from `gkd_register_recipes`",
    ),
    "no loss": (
        f"{HEAD}{CLASS.partition('    def loss')[0]}{registers()}",
        r"method 'x' of plugin .*: it lacks `loss`",
    ),
    "one twice": (f"{HEAD}{CLASS}{registers('[X, X]')}", "the same method 'x' .*registers it"),
    "two of a name": (
        f"{HEAD}{CLASS}Y = X{CLASS}{registers('[X, Y]')}",
        "the plugin has two of this name",
    ),
    "kinds that are text": (
        with_method('name = "x"', 'name = "x"\n    kinds = "classification"'),
        "`kinds` must be a tuple of texts, not 'classification'",
    ),
    "a flag that is text": (
        with_method('name = "x"', 'name = "x"\n    needs_labels = "no"'),
        "`needs_labels` must be True or False, not 'no'",
    ),
    "a paper that is a number": (with_method('"Nobody, 2026"', "2026"), "`paper` must be text"),
    "a list of reads": (
        with_method("def reads(self, models, step):\n        return []", "reads = ['student.x']"),
        r"`reads` must be a method, not \['student.x'\]",
    ),
    "a loss with too few arguments": (
        with_method("def loss(self, student, teacher, batch, step)", "def loss(self, student)"),
        "`loss` must take self, student, teacher, batch, step",
    ),
    "a constructor with other arguments": (
        with_method("def reads", "def __init__(self): ...\n\n    def reads"),
        "`__init__` must take self, config",
    ),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_plugin_that_registers(what, try_with):
    source, message = PARTS[what]
    said, _ = try_with(source)
    assert len(said) == 1
    assert "plugin 'bad' (gkd-bad 1.2)" in said[0]
    assert re.search(message, said[0])


def _top_level_keys():
    from gkd_core.config.render import json_schema
    from gkd_core.plugins import Registry

    # Names of methods have no underscore.
    return sorted(key for key in json_schema(Registry([]))["properties"] if "_" not in key)


@pytest.mark.parametrize("name", [*_top_level_keys(), "total"])
def test_a_method_named_like_a_setting_is_left_out(name, try_with):
    said, registry = try_with(with_method('name = "x"', f'name = "{name}"'))
    assert len(said) == 1
    assert f"method '{name}' of plugin 'bad' (gkd-bad 1.2) was skipped: " in said[0]
    with pytest.raises(MethodError, match=f"^method '{name}' of plugin 'bad' .*rename the method"):
        registry.method(name)


def test_a_combiner_named_like_a_method_is_left_out(try_with):
    combiner = (
        "class C(TeacherCombiner):\n    '''C.'''\n    name = 'fine'\n    paper = 'p'\n"
        "    def weight(self, number, student, teacher, batch, step): return 1.0\n"
    )
    source = f"{HEAD}{combiner}{registers('[C]', 'gkd_register_combiners')}"
    said, registry = try_with(source, ask=["combiners"])
    assert len(said) == 1
    assert "share a table with 'fine' of plugin 'fine' (gkd-fine 1.2)" in said[0]
    assert not registry.combiners


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("Path('/nowhere/r.toml')", "recipe 'r' of plugin .*there is no file /nowhere/r.toml"),
        ("Path('/')", "there is no file /"),
        ("'r.toml'", "returned 'r.toml', which is not a Path or a subclass of Procedure"),
    ],
)
def test_a_recipe_that_is_no_file_is_named_at_once(recipe, message, try_with):
    hook = registers(f"[{recipe}]", "gkd_register_recipes")
    said, registry = try_with(f"{HEAD}from pathlib import Path\n{hook}", ask=["recipes"])
    assert len(said) == 1
    assert re.search(message, said[0])
    if "'r' of" in message:
        with pytest.raises(ConfigError, match=message):
            registry.recipe("r")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("click.Command('run')", None),
        ("click.Command(None)", "the name of a command is one word, not ''"),
        ("click.Command('two words')", "not 'two words'"),
        ("Loud('x')", "command 'x' of plugin 'bad' .*ValueError: no help"),
    ],
)
def test_commands_are_checked(command, message, try_with):
    code = (
        "import click\nclass Loud(click.Command):\n"
        "    def get_short_help_str(self, limit=45): raise ValueError('no help')\n"
    )
    hook = registers(f"[{command}]", "gkd_register_commands")
    said, registry = try_with(f"{HEAD}{code}{hook}", ask=["commands"])
    assert list(registry.commands) == ([] if message else ["run"])
    assert message is None or re.search(message, said[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gkd-core~=9.0", "it requires gkd-core~=9.0, but version 0.2.0 is installed"),
        ("GKD_fine>=2 ; python_version > '3'", "it requires GKD_fine>=2, but version 1.2"),
        ("gkd-core~=9", "its requirement 'gkd-core~=9' is not valid"),
    ],
)
def test_a_plugin_whose_requirements_are_not_met_is_left_out(line, message, try_with):
    said, registry = try_with(with_hook(""), requires=["gkd-core~=0.2.0", line])
    assert len(said) == 1
    assert message in said[0]
    assert "x" not in registry.methods


@pytest.mark.parametrize(
    "line", ["gkd-core~=0.2.0", "gkd-fine>=2 ; extra == 'more'", "nowhere>=3", "!!"]
)
def test_other_requirements_are_left_to_pip(line, try_with):
    said, registry = try_with(with_hook(""), requires=[line])
    assert said == []
    assert "x" in registry.methods


@pytest.mark.parametrize(
    "value", ["json:nothing", "sys:maxsize", "collections:OrderedDict", "", "a b"]
)
def test_an_entry_point_that_is_no_module_is_named(value, install, load, method, tmp_path):
    install("gkd-fine", fine=method("fine"))
    install("gkd-bad")
    (tmp_path / "gkd_bad-1.2.dist-info/entry_points.txt").write_text(f"[gkd]\nbad = {value}\n")
    with pytest.warns(UserWarning, match=r"^plugin 'bad' \(gkd-bad 1.2\) was skipped: "):
        assert list(load().methods) == ["fine"]


def test_one_module_is_one_plugin(install, load, method, tmp_path):
    install("gkd-x", x=method("x"))
    entries = tmp_path / "gkd_x-1.2.dist-info/entry_points.txt"
    module = entries.read_text().rpartition(" ")[2]
    entries.write_text(f"[gkd]\nx = {module}\ny = {module}\n")
    with pytest.warns(UserWarning, match=r"plugin 'y' .*plugin 'x' \(gkd-x 1.2\) is the same mod"):
        assert list(load().methods) == ["x"]


def test_unreadable_entry_points_of_a_distribution_hide_no_other(
    install, method, tmp_path, monkeypatch
):
    from gkd_core.plugins import Registry
    from gkd_core.plugins.discovery import installed

    install("gkd-x", x=method("x"))
    install("other")
    (tmp_path / "other-1.2.dist-info/entry_points.txt").write_text("[gkd]\nno equals sign\n")
    with pytest.warns(UserWarning, match="the entry points of other cannot be read"):
        found = list(installed())
    names = {entry.name for entry in found}
    assert {"x", "core"} <= names
    assert "x" in Registry([entry for entry in found if entry.name == "x"]).methods


CHANGES = {
    "the working directory": ("import os\nos.chdir('/')", os.getcwd),
    "how warnings are treated": (
        "import warnings\nwarnings.simplefilter('error')",
        lambda: [one for one in warnings.filters if one[0] == "error"],
    ),
    "how signals are handled": (
        "import signal\nsignal.signal(signal.SIGINT, lambda number, frame: None)",
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "the data type or the gradients of torch": (
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)",
        lambda: (sys.modules["torch"].get_default_dtype(), sys.modules["torch"].is_grad_enabled()),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_plugin_changes_at_import_is_set_back(what, try_with):
    importlib.import_module("torch")
    code, state = CHANGES[what]
    before = state()
    said, registry = try_with(with_hook(code))
    assert said == [
        f"plugin 'bad' (gkd-bad 1.2) changed {what} when it was loaded; gkd has set it back"
    ]
    assert state() == before
    assert "x" in registry.methods


def test_what_a_plugin_prints_when_it_is_loaded_goes_to_stderr(try_with, capfd):
    code = "import os\nprint('from Python')\nos.system('echo from a child')\n"
    said, _ = try_with(f"{code}{with_hook('')}{registers('[print(1) or X]')}")
    assert said == []
    out, err = capfd.readouterr()
    assert out == ""
    assert set(err.split("\n")) == {"from Python", "from a child", "1", ""}
