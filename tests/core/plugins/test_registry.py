import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gkd_core import api, hookspecs
from gkd_core.api import API_VERSION, Method, Task
from gkd_core.errors import ConfigError, MethodError, PluginError


def test_methods_are_found_with_their_distribution(install, load, method):
    install("gkd-method-x", x=method("x"))
    registry = load()
    assert list(registry.methods) == ["x"]
    assert str(registry.provider("x")) == "'x' (gkd-method-x 1.2)"


def test_code_belongs_to_the_plugin_that_registers_it_or_contains_it(install, load, method):
    install("gkd-x", x=method("x"))
    install("gkd-y", y=method("y"))
    registry = load()
    cls = registry.methods["x"]
    module = registry.manager.get_plugin("x")
    for thing in (cls, cls(), cls.reads, module, module.gkd_register_methods):
        assert str(registry.plugin_of(thing)) == "'x' (gkd-x 1.2)"
    assert registry.plugin_of(Path) is None
    assert registry.plugin_of(Method) is None


def test_code_belongs_to_a_plugin_also_in_another_module_of_its_distribution(
    install, load, tmp_path, method
):
    (tmp_path / "inner_of_x.py").write_text("def fail():\n    raise ValueError('inner')\n")
    install("gkd-x", x=f"import inner_of_x\n{method('x')}")
    (tmp_path / "gkd_x-1.2.dist-info/top_level.txt").write_text("inner_of_x\n")
    registry = load()
    inner = registry.manager.get_plugin("x").inner_of_x
    assert registry.plugin_of(inner.fail).distribution == "gkd-x"
    with pytest.raises(ValueError, match="inner") as raised:
        inner.fail()
    assert registry.blame(raised.value).plugin.name == "x"


def test_an_error_is_blamed_on_the_plugin_whose_code_raised_it(install, load):
    hook = "from gkd_core.api import hookimpl\n@hookimpl\ndef gkd_check_outline(outline):\n    {}\n"
    install("gkd-fine", fine=hook.format("pass"))
    install("gkd-bad", bad=hook.format("{}['nowhere']"))
    registry = load()
    with pytest.raises(KeyError) as raised:
        registry.manager.hook.gkd_check_outline(outline=None)
    assert re.fullmatch(
        r"plugin 'bad' \(gkd-bad 1.2\) raised KeyError: 'nowhere' "
        r"\(plugin_gkd_bad_bad_\w+.py, line 4, in gkd_check_outline\)",
        str(registry.blame(raised.value)),
    )
    wrapped = RuntimeError("step 3 failed")
    wrapped.__cause__ = raised.value
    assert registry.blame(wrapped).plugin.name == "bad"
    assert registry.blame(RuntimeError("of core")) is None


def test_plugins_are_called_in_alphabetical_order(install, load):
    hook = (
        "from gkd_core.api import hookimpl\n@hookimpl\n"
        "def gkd_check_outline(outline):\n    outline.append({!r})\n"
    )
    for name in ("m", "z", "a"):
        install(f"dist-{name}", **{name: hook.format(name)})
    calls = []
    load().manager.hook.gkd_check_outline(outline=calls)
    assert calls == ["a", "m", "z"]


def test_a_broken_plugin_is_skipped_and_its_reason_repeated(install, load, method):
    install("gkd-broken", broken="import no_such_module\n")
    install("gkd-fine", fine=method("fine"))
    with pytest.warns(
        UserWarning, match=r"'broken' \(gkd-broken 1.2\) was skipped.*no_such_module"
    ):
        registry = load()
    assert list(registry.methods) == ["fine"]
    with pytest.raises(
        MethodError, match=r"unknown method 'other'.*gkd-broken 1.2.*no_such_module"
    ):
        registry.method("other")


def test_a_plugin_whose_methods_fail_to_import_loses_only_them(install, load, method):
    source = (
        "from gkd_core.api import hookimpl\n@hookimpl\n"
        "def gkd_register_methods():\n    import nowhere\n"
    )
    install("gkd-lazy", lazy=source)
    install("gkd-fine", fine=method("fine"))
    registry = load()
    with pytest.warns(UserWarning, match="nowhere"):
        assert list(registry.methods) == ["fine"]


def test_a_misspelt_hook_is_named_with_the_right_one(install, load):
    source = (
        "from gkd_core.api import hookimpl\n@hookimpl\ndef gkd_register_method():\n    return []\n"
    )
    install("gkd-typo", typo=source)
    with pytest.warns(UserWarning, match=r"gkd-typo 1.2.*Did you mean 'gkd_register_methods'"):
        load()


def test_a_hook_with_an_unknown_argument_is_named(install, load):
    source = "from gkd_core import hookimpl\n@hookimpl\ndef gkd_check_outline(nope):\n    pass\n"
    install("gkd-argument", argument=source)
    with pytest.warns(UserWarning, match=r"gkd-argument 1.2.*nope"):
        load()


def test_a_hook_of_version_0_1_is_named_with_the_new_one(install, load):
    source = "from gkd_core import hookimpl\n@hookimpl\ndef gkd_check_plan(plan):\n    pass\n"
    install("gkd-old", old=source)
    with pytest.warns(UserWarning, match=r"'gkd_check_plan'. It is called 'gkd_check_outline'"):
        load()


def test_a_plugin_for_another_contract_is_refused_with_both_numbers(install, load):
    install("gkd-new", new="GKD_API_VERSION = 3\n")
    with pytest.warns(UserWarning, match=r"gkd-new 1.2.* version 3 of .* this gkd has version 2"):
        load()


def test_a_plugin_for_this_contract_is_loaded(install, load, method):
    install("gkd-now", now=f"GKD_API_VERSION = {API_VERSION}\n{method('now')}")
    assert list(load().methods) == ["now"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hand_on", "finalize_student"),
        ("emphasis", "term_scale"),
        ("unlocks", "gradual_unfreezing"),
    ],
)
def test_a_method_that_defines_an_old_name_is_refused_with_the_new_one(old, new):
    attributes = {"__doc__": "A method.", "name": "old", "paper": "A test", old: True}
    with pytest.raises(PluginError, match=f"defines `{old}`, which is called `{new}` since"):
        type("Old", (Method,), attributes)


def test_a_task_that_defines_an_old_name_is_refused_with_the_new_one():
    with pytest.raises(PluginError, match="`own_teacher`, which is called `default_teacher`"):
        type("Old", (Task,), {"name": "old", "own_teacher": lambda self, data, size: None})


@pytest.mark.parametrize(("old", "new"), api.RENAMED.items())
def test_an_old_name_of_the_api_is_refused_with_the_new_one(old, new):
    with pytest.raises(ImportError, match=f"{old} is called {new} since version 0.2"):
        getattr(api, old)


def test_every_name_of_the_api_is_there():
    for name in api.__all__:
        assert getattr(api, name) is not None, name


def test_the_api_imports_no_torch():
    code = "import sys, gkd_core.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_method_of_two_plugins_is_refused_and_names_both(install, load, method):
    install("gkd-one", one=method("same"))
    install("gkd-two", two=method("same", "Other"), fine=method("fine"))
    registry = load()
    with pytest.warns(UserWarning, match=r"'same'.*gkd-(one|two) 1.2.*gkd-(one|two) 1.2"):
        assert list(registry.methods) == ["fine"]
    with pytest.raises(MethodError, match=r"'same'.*gkd-one 1.2.*gkd-two 1.2"):
        registry.method("same")


def test_two_plugins_of_one_name_are_both_loaded(install, load, method):
    install("gkd-one", same=method("a"))
    install("gkd-two", same=method("b"))
    registry = load()
    assert [str(plugin) for plugin in registry.plugins.values()] == [
        "'same' (gkd-one 1.2)",
        "'same' (gkd-two 1.2)",
    ]
    assert registry.provider("b").distribution == "gkd-two"


@pytest.mark.parametrize("name", ["x", "gkd-x"])
def test_plugins_can_be_disabled_by_name_or_distribution(install, load, monkeypatch, name, method):
    install("gkd-x", x=method("x"))
    install("gkd-y", y=method("y"))
    monkeypatch.setenv("GKD_DISABLE_PLUGINS", name)
    assert list(load().methods) == ["y"]


def test_an_unknown_method_suggests_the_nearest(install, load, method):
    install("gkd-x", x=method("cosine"))
    with pytest.raises(MethodError, match="Did you mean 'cosine'"):
        load().method("cosin")


def test_an_unknown_recipe_is_an_error(install, load):
    with pytest.raises(ConfigError, match=r"unknown recipe 'tinybert'\. No installed plugin"):
        load().recipe("tinybert")


def test_the_installed_packages_all_load():
    from gkd_core.plugins import registry

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = registry()
        assert {"hard", "kd", "pkd", "soft"} <= set(found.methods)
        assert {"core", "classic", "multiteacher", "intermediate"} <= set(found.plugins)
        assert {"embedded", "files", "hub"} <= set(found.tasks)


HOOKS = [name for name in vars(hookspecs) if name.startswith("gkd_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_and_has_a_user(hook):
    spec = getattr(hookspecs, hook)
    assert spec.__doc__
    assert "return" in spec.__annotations__
    root = Path(__file__).parents[3]
    places = (
        "gkd-*/src/**/plugin.py",
        "gkd-core/src/**/builtin.py",
        "docs/**/*.py",
        "docs/**/*.md",
    )
    users = [path for pattern in places for path in root.glob(pattern)]
    assert any(f"@hookimpl\ndef {hook}(" in path.read_text() for path in users)


@pytest.mark.parametrize(
    "code", ["import gkd_core", "import gkd_core.cli, gkd_core.plugins as p; p.registry()"]
)
def test_importing_gkd_imports_no_torch(code):
    check = (
        f"{code}\nimport sys\nassert not {{'torch', 'transformers', 'pydantic'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_imports_no_torch():
    check = (
        "import sys\nfrom click.testing import CliRunner\nfrom gkd_core.cli import gkd\n"
        "result = CliRunner().invoke(gkd, ['--help'])\n"
        "assert result.exit_code == 0 and 'run' in result.output, result.output\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
