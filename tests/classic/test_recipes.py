"""Every shipped recipe resolves, says where it comes from, and runs."""

import json

import pytest

from gkd_core.config.resolve import resolve
from gkd_core.plugins import registry
from gkd_core.training.run import draw_run

RECIPES = sorted(registry().recipes)


@pytest.fixture
def draw(world):
    """Draw a recipe on the small world, as `gkd run --recipe` does before it trains."""

    def _draw(recipe):
        flags = {
            "teachers": ([{"model": str(world / "teacher")}], "--teacher"),
            "task.train": (str(world / "train.jsonl"), "--data"),
            "student.layers": (2, "--student-layers"),
            "task.max_length": (32, "--set"),
        }
        resolved = resolve(registry(), recipe=recipe, flags=flags)
        return resolved, draw_run(resolved, registry())

    return _draw


def test_the_package_ships_a_recipe_for_each_of_its_methods():
    methods = {n for n in registry().methods if registry().provider(n).name == "classic"}
    assert methods <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is_and_can_be_drawn(draw, recipe):
    resolved, blueprints = draw(recipe)
    assert set(resolved.about) == {"title", "paper", "description"}
    assert not resolved.warnings
    assert recipe in blueprints[-1].expression.names


def test_pkd_is_the_objective_of_the_paper(draw):
    _, (stage,) = draw("pkd")
    weights = {member.name: member.weight.at(0, 1) for member in stage.expression.members}
    assert weights == {"hard": 0.5, "soft": 0.5, "pkd": 1}
    options = {member.name: member.methods[0].config for member in stage.members}
    assert options["soft"].temperature.at(0, 1) == 10
    assert (options["pkd"].beta.at(0, 1), options["pkd"].layers) == (100, "skip")
    assert stage.config.student.init == "first"
    assert stage.config.training.lr == 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_the_command_line(gkd, settings, tmp_path, recipe):
    output = tmp_path / "run"
    done = gkd("run", "--recipe", recipe, *settings, "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "results.json").read_text())["rows"][-1]["name"].startswith(
        "student"
    )
