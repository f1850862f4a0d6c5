"""The recipes of the combiners: what they resolve to, and that they run."""

import json
import shutil

import pytest
from tests.grids import first_of

from gkd_core.config.resolve import resolve
from gkd_core.models import embedded_teachers
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run

RECIPES = {
    "average": [("distil", "average(soft)+hard")],
    "mt-bert": [("distil", "mt-bert(soft)+2*match+hard")],
    "rl-kd": [("distil", "0.5*rl-kd(soft)+0.5*hard")],
    "tmkd": [("transfer", "tmkd(match)"), ("task", "tmkd(0.5*hard+0.5*match)")],
    "uncertainty": [("distil", "2*uncertainty(match)+hard")],
}
"""Name and methods of each stage."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_two_teachers_and_the_objective_of_its_paper(world, pair, recipe):
    named = [{"name": name, "model": str(pair / name)} for name in ("large", "small")]
    data = [f"task.train={world / 'train.jsonl'}", "task.max_length=32", "baseline=false"]
    flags = {"teachers": (named, "--teacher")}
    resolved = resolve(registry(), recipe=recipe, settings=data, flags=flags)
    assert set(resolved.about) == {"title", "paper", "description"}
    assert not resolved.warnings
    specs = prepare_run(resolved, registry())
    assert [(b.name, str(b.expression)) for b in specs] == RECIPES[recipe]
    for spec in specs:
        assert [teacher.info.name for teacher in spec.teachers] == ["large", "small"]
        assert spec.student.layers == 2


def test_without_teachers_of_ones_own_the_task_brings_a_large_and_a_small_one():
    config = resolve(registry(), recipe="mt-bert").config
    assert [(t.name, t.size, t.model) for t in config.teachers] == [
        ("large", "large", None),
        ("small", "small", None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", first_of(RECIPES))
def test_a_recipe_runs_from_the_command_line(invoke, two, tmp_path, recipe):
    output = tmp_path / "run"
    given = [text for text in two if text not in ("--student-layers", 2)]
    done = invoke("run", "--recipe", recipe, *given, "--output", output)
    assert done.code == 0, done.err
    rows = json.loads((output / "results.json").read_text())["rows"]
    methods = " then ".join(method for _, method in RECIPES[recipe])
    assert rows[-1]["name"] == f"student, {methods}"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_recipe_needs_no_arguments(invoke, embedded_rows, tmp_path, monkeypatch):
    """Both teachers are trained on the spot; here for a few steps only."""
    brief = {"steps": 2, "batch_size": 32, "lr": 1e-3}
    monkeypatch.setitem(embedded_teachers.TRAINING, "classification", brief)
    shutil.copytree(embedded_rows, tmp_path / "cache" / "embedded")
    output = tmp_path / "run"
    done = invoke("run", "--recipe", "mt-bert", "--set", "training.steps=2", "--output", output)
    assert done.code == 0, done.err
    shown = json.loads((output / "results.json").read_text())["rows"]
    assert [row["name"] for row in shown][-1] == "student, mt-bert(soft)+2*match+hard"
    configs = sorted((tmp_path / "cache" / "teachers").glob("*/trained/config.json"))
    layers = [json.loads(path.read_text())["num_hidden_layers"] for path in configs]
    assert sorted(layers) == [3, 4]
