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
RECIPES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.exhaustive)
    for name in sorted(registry().recipes)
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_needs_no_other_setting(invoke, rows, recipe):
    done = invoke("explain", "--recipe", recipe)
    assert done.code == 0, done.err
    assert "\nstage " in done.out
