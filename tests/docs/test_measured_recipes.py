"""What runs of recipes have measured is kept in one file, from which two pages are made."""

import pytest
from tests.docs.test_demo_figure import load, run  # noqa: F401

from gkd_core.plugins import registry


@pytest.fixture
def script(monkeypatch):
    return load("measured_recipes", monkeypatch)


def test_a_line_has_what_the_run_has_measured(script, run):  # noqa: F811
    (run / "config.toml").write_text('title = "Soft labels alone"\n')
    line = script.measure(run)
    assert (line.recipe, line.metric, line.rows) == ("soft", "accuracy", "100")
    assert (line.labels, line.student, line.teacher) == ("0.6000", "0.9000", "0.9500")
    assert 0.15 < float(line.low) < 0.3 < float(line.high) < 0.45


def test_a_run_without_a_recipe_is_named(script, run):  # noqa: F811
    (run / "config.toml").write_text('method = "soft"\n')
    with pytest.raises(SystemExit, match="is no run of an installed recipe"):
        script.measure(run)


def test_the_table_comes_back_as_it_was_written(script, tmp_path):
    lines = [script.MeasuredRecipe("soft", "accuracy", "9", "0.5", "0.6", "0.7, 0.8", "", "")]
    script.write_table(lines, tmp_path / "table.csv")
    assert script.read_table(tmp_path / "table.csv") == lines


def test_the_committed_lines_are_of_recipes_and_in_order(script):
    lines = script.read_table()
    assert [line.recipe for line in lines] == sorted({line.recipe for line in lines})
    assert {line.recipe for line in lines} <= set(registry().recipes)


def test_the_paper_index_has_what_was_measured(generate):
    index = generate.papers()
    for line in generate._measured():
        assert f"`{line['recipe']}`: {line['labels']} → **{line['student']}**" in index


def test_perplexities_are_ranked_from_the_smallest(generate):
    lines = [{"metric": "perplexity", "student": value} for value in ("9.5", "30.1", "10.2")]
    assert [each["student"] for each in sorted(lines, key=generate._rank)] == [
        "9.5",
        "10.2",
        "30.1",
    ]
