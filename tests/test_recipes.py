"""What every recipe of the packages, as its users first try it, is worth."""

import re

import pytest

from gkd_core.plugins import registry

RECIPES = sorted(registry().recipes)
VALUE = re.compile(r"^student, .*?(0\.\d{4}) ", re.MULTILINE)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The cache in which the default teachers are trained once."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.recipes
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_as_good_as_labels_alone_on_the_embedded_task(gkd, cache, recipe):
    done = gkd("run", "--recipe", recipe, GKD_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    baseline, student = map(float, VALUE.findall(done.stdout))
    assert "labels alone are better than distillation" not in done.stdout
    assert student > 0.3 > 2 * 0.132, "it is hardly better than the most frequent class"
    assert baseline > 0.2
