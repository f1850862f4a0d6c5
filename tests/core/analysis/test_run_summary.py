"""A plugin that fails while the report is written costs neither the report nor the student."""

from __future__ import annotations

import pytest
import torch

from gkd_core.analysis.run_summary import summarize_run
from gkd_core.api import hookimpl
from gkd_core.data.files import Files
from gkd_core.evaluation.predictions import Predictions


class Late(Files):
    """Rows of files that can be measured while a stage is trained, but not afterwards."""

    name = "late"

    def measure(self, split, predictions, data):
        if split is data.test:
            raise KeyError("no such row")
        return {}


class Raises:
    @hookimpl
    def gkd_register_tasks(self):
        return [Late]

    @hookimpl
    def gkd_report(self, run):
        raise ZeroDivisionError("no losses")


class Names:
    @hookimpl
    def gkd_report(self, run):
        return [run.directory / "curve.svg"]


class Adds:
    @hookimpl
    def gkd_report(self, run):
        path = run.directory / "table.csv"
        path.write_text("step,loss\n")
        return [path]


@pytest.fixture
def summary(prepare_run, registry_with, brief):
    """Return a finished run with failing plugins and its summary."""

    def _summary(*settings):
        known = registry_with(Raises(), Names(), Adds())
        run = prepare_run("method=soft", "training.steps=1", *settings, registry=known)
        (run.directory / "config.toml").write_text("")
        run.execute()
        return run, summarize_run(run)

    return _summary


def test_the_report_names_the_plugins_that_add_nothing_and_has_what_others_add(summary):
    run, found = summary()
    assert (run.directory / "results.json").exists()
    assert found.failure is None
    page = found.report.read_text()
    assert "plugin &#39;test&#39; (test unknown version) raised ZeroDivisionError" in page
    assert "plugin &#39;test-2&#39;" in page
    assert "curve.svg" in page
    assert "table.csv</a>" in page
    assert "accuracy on 40 test rows" in page
    _check_predictions(run, found.comparison)


def _check_predictions(run, comparison):
    """Check that the table of a run follows from what each model says of each row."""
    found = Predictions.read(run.directory / "predictions")
    assert list(found.names.values()) == ["student, soft", "teacher"]
    gold = found.rows["gold"].to_pylist()
    answers = {file: table["prediction"].to_pylist() for file, table in found.models.items()}
    for row, file in zip(comparison.rows, ("teacher", "student"), strict=True):
        right = [a == b for a, b in zip(answers[file], gold, strict=True)]
        assert row.metrics["accuracy"] == pytest.approx(sum(right) / 40)
        same = [a == b for a, b in zip(answers[file], answers["teacher"], strict=True)]
        assert row.agreement == pytest.approx(sum(same) / 40)
        losses = found.models[file]["loss"].to_pylist()
        assert row.metrics["loss"] == pytest.approx(sum(losses) / 40, rel=1e-5)
        scores = torch.tensor(found.models[file]["scores"].to_pylist())
        labels = torch.tensor([found.about.classes.index(name) for name in gold])
        assert torch.nn.functional.cross_entropy(scores, labels) == pytest.approx(
            row.metrics["loss"], rel=1e-5
        )


def test_without_a_comparison_there_is_a_report_that_says_why(summary):
    run, found = summary("task.name=late")
    assert isinstance(found.failure, KeyError)
    assert (found.comparison, (run.directory / "results.json").exists()) == (None, False)
    page = found.report.read_text()
    assert "the models could not be compared: plugin &#39;test&#39;" in page
    assert "no such row" in page
    assert (run.student / "model.safetensors").exists()
