"""The figure of the first page is drawn from what a run has measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from gkd_core.evaluation.predictions import About, Predictions

DOCS = Path(__file__).parents[2] / "docs"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path):
    """A run in which labels alone are right in 60, and distillation in 90 of 100 rows."""
    names = {"teacher": "teacher", "baseline": "student, labels only", "student": "student, soft"}
    right = {"teacher": 95, "baseline": 60, "student": 90}
    gold = ["yes"] * 100
    models = {f: ["yes"] * n + ["no"] * (100 - n) for f, n in right.items()}
    rows = pa.table({"row": range(100), "hash": [str(n) for n in range(100)], "gold": gold})
    tables = {f: pa.table({"hash": rows["hash"], "prediction": said}) for f, said in models.items()}
    about = About("test", "classification", ("no", "yes"), "accuracy")
    (tmp_path / "predictions").mkdir()
    Predictions(about, rows, tables, names).write(tmp_path / "predictions")
    shown = [
        {
            "name": names[file],
            "metrics": {"accuracy": n / 100},
            "parameters": 1_500_000,
        }
        for file, n in right.items()
    ]
    (tmp_path / "results.json").write_text(json.dumps({"metric": "accuracy", "rows": shown}))
    return tmp_path


def test_the_figure_shows_each_model_and_the_gain(run, monkeypatch):
    figure = load("demo_figure", monkeypatch).draw(run)
    assert ">student, labels only</text>" in figure
    assert ">0.9000 (1.50 M weights)</text>" in figure
    assert ">The teacher adds +0.3000 to labels alone (95% interval +0.2" in figure


def test_the_figure_can_be_read_by_day_and_by_night(run, monkeypatch):
    figure = load("demo_figure", monkeypatch).draw(run)
    assert "prefers-color-scheme: dark" in figure
    assert "fill: #1f2937" not in figure, "ink follows the scheme"


def test_the_committed_figure_is_that_of_a_run():
    figure = (DOCS / "images" / "demo.svg").read_text()
    assert "student, soft+hard" in figure
    assert "prefers-color-scheme: dark" in figure
