"""Options of methods that have another default for a kind of task."""

from __future__ import annotations

import pytest

from gkd_core.api import Method, PluginError
from gkd_core.config.render import to_toml
from gkd_core.config.resolve import resolve
from gkd_core.plugins import registry
from gkd_core.runs.default_method import as_built
from gkd_core.runs.run import prepare_run as specs_of

LM = ("task.kind=causal-lm",)


@pytest.fixture
def temperature(prepare_run):
    """The temperature of a method in the last stage of a run, and its origin."""

    def _temperature(method, *settings, name=None, teacher="lm-decoder", **options):
        run = prepare_run(f"method={method}", *settings, teachers=(teacher,), **options)
        name = name or method
        config = run.last.config.options[name]
        assert run.last.members[0].methods[0].config == config
        return str(config.temperature), run.last.origin(f"{name}.temperature")

    return _temperature


@pytest.mark.parametrize("method", ["soft", "kd"])
def test_a_language_model_is_compared_as_it_writes(temperature, method):
    assert temperature(method, *LM) == ("1", "default for causal-lm")
    assert temperature(method, *LM, f"{method}.temperature=2") == ("2", "--set")


def test_what_other_kinds_compare_stays(temperature):
    assert temperature("soft", teacher="teacher") == ("4", "default")
    assert temperature("soft", "task.kind=masked-lm", teacher="lm-teacher") == ("4", "default")
    assert temperature("distilbert", *LM) == ("2", "default")


def test_each_stage_has_the_default_of_its_kind(prepare_run):
    file = """
        [[stages]]
        name = "text"
        method = "soft"
        task.kind = "causal-lm"
        [[stages]]
        name = "given"
        method = "soft"
        task.kind = "causal-lm"
        soft.temperature = "linear(3 -> 1)"
    """
    run = prepare_run(teachers=("lm-decoder",), file=file)
    found = [str(spec.config.options["soft"].temperature) for spec in run.specs]
    assert found == ["1", "linear(3 -> 1, over=100%)"]


def test_a_run_goes_on_with_the_default_that_it_began_with(world, tmp_path):
    settings = [*LM, f"task.train={world / 'corpus.txt'}", "method=soft"]
    models = [{"name": "t", "model": str(world / "lm-decoder")}]
    begun = resolve(registry(), settings=settings, flags={"teachers": (models, "--teacher")})
    begun = as_built(begun, specs_of(begun, registry()))
    text = to_toml(begun)
    assert "temperature = 1.0  # default for causal-lm" in text
    for value in ("1.0", "4.0"):  # of this version, and of one that had a single default
        (tmp_path / "run.toml").write_text(
            text.replace("temperature = 1.0", f"temperature = {value}")
        )
        again = resolve(registry(), files=[tmp_path / "run.toml"])
        (spec,) = specs_of(again, registry())
        assert str(spec.config.options["soft"].temperature) == value.removesuffix(".0")
        assert "run.toml" in spec.origin("soft.temperature")


def test_descriptions_say_where_the_default_is_another():
    for method in registry().methods.values():
        for kind, defaults in method.kind_defaults.items():
            for name, value in defaults.items():
                text = method.Config.model_fields[name].description
                assert f"The default for {kind} is {value:g}." in text


@pytest.mark.parametrize(
    ("defaults", "message"),
    [({"heat": 1}, "option `heat`: Extra inputs"), ({"weight_decay": 1}, "`weight_decay`")],
)
def test_a_default_that_no_option_can_have_is_refused(defaults, message):
    members = {"name": "odd", "paper": "A test", "kind_defaults": {"causal-lm": defaults}}
    with pytest.raises(PluginError, match=rf"kind_defaults\['causal-lm'\].*{message}"):
        type("Odd", (Method,), {"__doc__": "Odd.", **members})
