"""What commands say of plugins that are broken, and of all others."""

import json
import re

import pytest

from gkd_core.plugins import registry

pytestmark = pytest.mark.filterwarnings("default::UserWarning")

LOUD = '''
from gkd_core.api import Method, hookimpl

print("imported")


class Loud(Method):
    """A method that prints."""

    name = "loud"
    paper = "Nobody, 2026"

    def reads(self, models, step):
        print("asked")
        return ["student.logits"]

    def loss(self, student, teacher, batch, step):
        {loss}


@hookimpl
def gkd_register_methods():
    print("registered")
    return [Loud]


@hookimpl
def gkd_check_outline(outline):
    print("checked")
    {check}
'''
COMMANDS = """
import sys
import click
from gkd_core.api import hookimpl


@click.command("stop")
def stop():
    "End."
    sys.exit(3)


@click.command("fail")
def fail():
    {{}}["nothing"]


@hookimpl
def gkd_register_commands():
    return [stop, fail, click.Command("{name}", help="Mine.")]
"""

ODD = '''
from collections.abc import Callable

from pydantic import Field
from transformers import PretrainedConfig

from gkd_core.api import Classification, Method, Sites, hookimpl


class Odd(Method):
    """A method with an option that JSON has no type for."""

    name = "odd"
    paper = "Nobody, 2026"

    class Config(Method.Config):
        call: Callable = Field(print, description="A function.")

    def reads(self, models, step):
        return []

    def loss(self, student, teacher, batch, step):
        return {}


class Sour(Classification):
    """A kind that raises whatever it is asked."""

    name = "sour"

    def fit(self, table, config):
        raise ValueError("no fit")

    def made(self, config):
        raise ValueError("not made")


class StrangeConfig(PretrainedConfig):
    """Its configuration."""

    model_type = "strange"


class Strange(Sites):
    """An architecture with a head for a kind that there is not."""

    families = ("strange",)
    config_class = StrangeConfig
    heads = {"nowhere": None}


@hookimpl
def gkd_register_methods():
    return [Odd]


@hookimpl
def gkd_register_kinds():
    return [Sour]


@hookimpl
def gkd_register_sites():
    return [Strange]
'''


@pytest.fixture(autouse=True)
def fresh():
    """Forget the plugins before and after: tests install their own."""
    registry.cache_clear()
    yield
    registry.cache_clear()


def loud(loss="return {}", check="pass"):
    return LOUD.format(loss=loss, check=check)


@pytest.fixture
def bad_reads(install, method):
    """Install a method whose `reads` raises."""
    source = method("bad").replace("return []", "return {}['layers']")
    install("gkd-bad", bad=source)


def test_a_method_that_cannot_be_described_does_not_end_the_list(invoke, bad_reads):
    listed = invoke("methods")
    assert listed.code == 0
    assert "It cannot be described:" in listed.out
    assert "plugin 'bad' (gkd-bad 1.2) raised KeyError: 'layers'" in " ".join(listed.out.split())
    assert "\n  soft " in listed.out
    shown = invoke("methods", "bad")
    assert shown.code == 0
    assert "KeyError: 'layers'" in shown.out
    assert "It has no options." in shown.out


def test_a_method_that_is_left_out_says_why_where_it_is_used(invoke, install, method):
    install("gkd-bad", bad=method("training"))
    done = invoke("config", "--method", "training+soft")
    assert done.code == 2
    reason = "method 'training' of plugin 'bad' (gkd-bad 1.2) was skipped"
    assert done.err.splitlines()[0].startswith(f"Warning: {reason}")
    assert f"Error: method 'training+soft' (--method): {reason}" in done.err
    assert invoke("config", "--method", "soft").code == 0


def test_the_output_as_json_is_only_that(invoke, install, settings):
    install("gkd-loud", loud=loud())
    done = invoke("explain", "loud", "--json", *settings)
    assert json.loads(done.out)["stages"]
    assert {"imported", "registered", "asked", "checked"} <= set(done.err.splitlines())
    assert json.loads(invoke("config", "--schema").out)["properties"]["loud"]


def test_what_gkd_asks_of_every_plugin_stops_no_run(invoke, install, settings):
    install("gkd-odd", odd=ODD)
    done = invoke("explain", "soft", *settings)
    assert done.code == 0
    assert "Warning: plugin 'odd' (gkd-odd 1.2) raised ValueError: no fit" in done.err
    assert "Warning: adapter for strange of plugin 'odd' (gkd-odd 1.2) was skipped: " in done.err
    schema = invoke("config", "--schema")
    assert schema.code == 0
    assert "Warning: the options of plugin 'odd' (gkd-odd 1.2) have no JSON schema" in schema.err
    assert json.loads(schema.out)["properties"]["odd"] == {"type": "object"}


@pytest.mark.parametrize(
    ("code", "error"), [("{}['no']", "KeyError: 'no'"), ("exit(0)", "SystemExit: 0")]
)
def test_a_hook_that_raises_is_named(code, error, invoke, install, settings, monkeypatch):
    install("gkd-loud", loud=loud(check=code))
    done = invoke("explain", "soft", *settings)
    assert done.code == 1
    said = done.err.splitlines()[-1]
    assert said.startswith(f"Error: plugin 'loud' (gkd-loud 1.2) raised {error} (plugin_")
    assert "in gkd_check_outline)" in said
    assert "Traceback" not in done.err
    monkeypatch.setenv("GKD_TRACEBACK", "1")
    assert "Traceback" in invoke("explain", "soft", *settings).err


def test_a_loss_that_raises_is_named_and_the_run_can_be_resumed(
    invoke, install, settings, tmp_path
):
    logits = "student.logits @ student.logits if step.index == 2 else student.logits.sum(-1)"
    install("gkd-loud", loud=loud(loss=f"return {{'a': {logits}}}"))
    done = invoke("run", "--method", "loud", "--output", "out", *settings)
    assert done.code == 1
    said = done.err.splitlines()[-1]
    assert said.startswith("Error: plugin 'loud' (gkd-loud 1.2) raised RuntimeError: ")
    assert "in loss)" in said
    assert said.endswith(". Continue with: gkd run --resume --output out")
    assert (tmp_path / "out/stages/distil/checkpoints/step-00000002").is_dir()


def test_commands_of_plugins_that_cannot_be_used_are_named(invoke, install):
    install("gkd-one", one=COMMANDS.format(name="run"))
    done = invoke("--help")
    assert done.code == 0
    assert "Mine." not in done.out
    assert "  stop " in done.out
    assert done.err == (
        "Warning: command 'run' of plugin 'one' (gkd-one 1.2) was skipped: gkd has a command of "
        "this name\n"
    )


def test_of_several_processes_one_names_what_is_left_out(invoke, install, monkeypatch):
    install("gkd-one", one=COMMANDS.format(name="run"))
    for name, value in (("RANK", "1"), ("GKD_LAUNCHER", "1")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            registry.cache_clear()
            assert invoke("--help").err == ""


def test_a_command_of_two_plugins_is_nobodys(invoke, install):
    install("gkd-one", one=COMMANDS.format(name="top"))
    install("gkd-two", two=COMMANDS.format(name="other"))
    done = invoke("stop")
    assert done.code == 2
    assert "No such command 'stop'. command 'stop' of plugin 'two' (gkd-two 1.2)" in done.err
    assert invoke("top", "--help").code == 0


def test_a_command_of_a_plugin_may_end_the_process(invoke, install):
    install("gkd-one", one=COMMANDS.format(name="top"))
    assert invoke("stop").code == 3
    done = invoke("fail")
    assert done.code == 1
    assert "Error: plugin 'one' (gkd-one 1.2) raised KeyError: 'nothing'" in done.err


def test_plugins_tell_all_that_they_provide_in_the_order_of_loading(invoke, install):
    install("gkd-one", one=COMMANDS.format(name="top"))
    install("gkd-bad", bad="import nowhere")
    found = json.loads(invoke("plugins", "--json").out)
    names = [plugin["name"] for plugin in found["plugins"]]
    assert names == sorted(names)
    by_name = {plugin["name"]: plugin for plugin in found["plugins"]}
    assert by_name["one"] | {"seconds": 0} == {
        "name": "one",
        "distribution": "gkd-one",
        "version": "1.2",
        "seconds": 0,
        "hooks": ["gkd_register_commands"],
        "provides": {"commands": ["fail", "stop", "top"]},
    }
    assert all(plugin["seconds"] > 0 for plugin in found["plugins"])
    assert by_name["core"]["provides"].keys() == {
        "tasks",
        "kinds of task",
        "launchers",
        "optimizers",
        "rollout engines",
        "sources of answers",
        "trackers",
    }
    assert {"methods", "recipes"} == by_name["classic"]["provides"].keys()
    assert "takd" in by_name["multiteacher"]["provides"]["procedures"]
    assert [line[:40] for line in found["skipped"]] == ["plugin 'bad' (gkd-bad 1.2) was skipped: "]
    listed = invoke("plugins").out
    assert f"{names.index('one') + 1} of {len(names)}, 0." in listed
    assert re.search("\n  commands +fail, stop, top *\n", listed)
