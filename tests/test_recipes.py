"""The worth of every recipe of the packages, as users first try it: on the embedded task."""

import json

import pytest

from gkd_core.plugins import registry

RECIPES = sorted(registry().recipes.keys() - {"sdft"})
"""All but one that needs prompts with answers."""

LOSE = {"minilm", "minilmv2", "seqkd"}
"""Recipes that lose to labels alone here; their pages say why."""

GUESS = 0.132
"""Accuracy by the most frequent class."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The cache in which the default teachers are trained once."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.recipes
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_as_good_as_labels_alone_on_the_embedded_task(gkd, cache, tmp_path, recipe):
    done = gkd("run", "--recipe", recipe, "--output", "run", GKD_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert ("labels alone are better than distillation" in done.stdout) <= (recipe in LOSE)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    value = results["rows"][-1]["metrics"][results["metric"]]  # the student is the last
    if results["metric"] == "accuracy":
        assert value > 1.2 * GUESS
    else:
        assert results["metric"] == "perplexity"
        assert "worse than at its start" not in done.stdout + done.stderr
