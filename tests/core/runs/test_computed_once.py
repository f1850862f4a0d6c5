"""What a run of three steps computes once: settings, configurations, sites, plans."""

from __future__ import annotations

import sys
from collections import Counter
from functools import wraps
from importlib import import_module

import pytest
import transformers

from gkd_core.config.overlay import merge
from gkd_core.models import source
from gkd_core.models.sites import find_sites
from gkd_core.objective.step_plan import plan_step

THREE_STEPS = ("--set", "training.steps=3", "--set", "training.evaluate_every=3")


@pytest.fixture
def count(monkeypatch):
    """Count the calls of a function, by what `key` makes of its arguments: `count(f, key)`."""

    # Commands import these when they are called: too late, with a counter of another test in them.
    for name in ("config.resolve", "analysis.run_summary"):
        import_module(f"gkd_core.{name}")

    def _count(stock, key):
        found = Counter()

        @wraps(stock)
        def counted(*arguments, **keywords):
            found[key(*arguments, **keywords)] += 1
            return stock(*arguments, **keywords)

        modules = [module for name, module in sys.modules.items() if name.startswith("gkd_core")]
        for module in modules:
            if vars(module).get(stock.__name__) is stock:
                monkeypatch.setattr(module, stock.__name__, counted)
        return found

    return _count


@pytest.fixture
def configurations(monkeypatch):
    """How often `AutoConfig` has read each directory."""
    found = Counter()
    stock = transformers.AutoConfig.from_pretrained.__func__

    def from_pretrained(cls, place, **keywords):
        found[str(place)] += 1
        return stock(cls, place, **keywords)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", classmethod(from_pretrained))
    source._read_config.cache_clear()
    return found


def test_a_run_of_three_steps_computes_nothing_twice(
    invoke, settings, count, configurations, world, tmp_path
):
    models = []  # kept: the next model could have the id of one that is gone
    merged = count(merge, lambda settings, problems: "settings")
    sites = count(find_sites, lambda model, *_: models.append(model) or id(model))
    plans = count(plan_step, _kind_of_plan)
    done = invoke("run", *settings, *THREE_STEPS, "--output", "run")
    assert done.code == 0, done.err
    assert merged == {"settings": 1}
    assert set(sites.values()) == {1}
    assert len(sites) == 4, "a teacher and a student: before the run without weights, and in it"
    assert configurations == {str(world / "teacher"): 1, "run/student": 1}
    assert {what: number for what, number in plans.items() if what[0] != "evaluation"} == {
        ("stage", 0): 1,
        ("step", 0): 1,
        ("step", 1): 1,
        ("step", 2): 1,
    }


def _kind_of_plan(members, step, training=True, explain=None):
    """Return whether a plan is that of a stage, of a step, or of an evaluation after it."""
    return ("stage" if explain else "step" if training else "evaluation"), step.index


def test_each_stage_merges_its_settings_once(invoke, settings, count):
    merged = count(merge, lambda settings, problems: "settings")
    stages = ("--set", "stages.0.name=one", "--set", "stages.1.name=two")
    done = invoke("explain", *settings, *stages)
    assert done.code == 0, done.err
    assert merged == {"settings": 3}, "the run, and each of its two stages"
