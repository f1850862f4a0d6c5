"""Every recipe can be tried by its name alone, on the embedded task."""

import shutil

import pytest

from gkd_core.plugins import registry


@pytest.fixture
def rows(embedded_rows, tmp_path, monkeypatch):
    """A cache with the rows of the embedded task."""
    shutil.copytree(embedded_rows, tmp_path / "cache" / "embedded")
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))


QUICK = {"distillm", "seqkd", "tinybert"}
NEEDS_ANSWERS = "sdft"
RECIPES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.exhaustive)
    for name in sorted(registry().recipes.keys() - {NEEDS_ANSWERS})
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_needs_no_other_setting(invoke, rows, recipe):
    done = invoke("explain", "--recipe", recipe)
    assert done.code == 0, done.err
    assert "\nstage " in done.out


def test_a_recipe_that_shows_its_teacher_answers_says_that_these_texts_have_none(invoke, rows):
    done = invoke("explain", "--recipe", NEEDS_ANSWERS)
    assert done.code == 2
    assert "have no prompts with an answer each, which the teacher would be shown" in done.err
