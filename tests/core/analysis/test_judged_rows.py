"""How good a student is on any of the rows, from its predictions alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from gkd_core.analysis.judged_rows import judge_rows
from gkd_core.config.schema import TaskConfig
from gkd_core.evaluation.predictions import About, Predictions
from gkd_core.plugins import registry

EVERY = np.arange(6)


def _judged(metric, kind, gold, student, expected, groups=None):
    """Judge a student on 6 rows, of which the last two have the same content."""
    task = registry().task("files")(TaskConfig(kind=kind), registry().kinds)
    rows = {
        "row": range(6),
        "hash": ["a", "b", "c", "d", "e", "e"],
        "text": list("abcdee"),
        "pair": pa.nulls(6),
        "gold": gold,
        "group": pa.nulls(6) if groups is None else groups,
    }
    about = About("test", kind, ("no", "yes") if kind == "classification" else (), metric)
    models = {"student": pa.table({"hash": rows["hash"], **student})}
    predictions = Predictions(about, pa.table(rows), models, {"student": "student"})
    return judge_rows(predictions, registry().kind(kind), task, expected)


def _labels(*named):
    return ["yes" if each else "no" for each in named]


def test_accuracy_is_a_mean_over_rows():
    student = {"prediction": _labels(1, 1, 0, 0, 1, 1)}
    found = _judged("accuracy", "classification", _labels(1, 1, 1, 1, 1, 1), student, 4 / 6)
    assert found.ids == ["a", "b", "c", "d", "e", "e, 2"]
    assert found.right.tolist() == [True, True, False, False, True, True]
    metric = found.metric(EVERY[1:4])
    assert metric(np.array([[1, 1, 1], [2, 1, 0]])).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_a_correlation_is_computed_anew_of_the_rows():
    gold = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    said = [0.1, 0.7, 2.5, 2.0, 4.5, 4.0]
    scores = {"prediction": said, "scores": [[each] for each in said]}
    expected = stats.pearsonr(gold, said).statistic
    found = _judged("pearson", "regression", gold, scores, expected)
    assert found.right is None
    part = stats.pearsonr(gold[1:5], said[1:5]).statistic
    assert found.metric(EVERY[1:5])(np.ones((1, 4))).tolist() == pytest.approx([part], abs=1e-5)


def test_a_metric_of_the_task_counts_groups_that_are_drawn_together():
    student = {"prediction": _labels(1, 0, 1, 1, 1, 1), "scores": [[0.0, 1.0]] * 6}
    groups = ["p", "p", "q", "q", "r", "r"]
    gold = _labels(1, 1, 1, 1, 1, 1)
    found = _judged("group_accuracy", "classification", gold, student, 2 / 3, groups)
    assert found.units == groups
    counts = np.array([[1, 1, 1, 1, 1, 1], [2, 2, 1, 1, 0, 0]])
    assert found.metric(EVERY)(counts).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_rows_are_not_judged_by_another_metric_than_that_of_the_run():
    student = {"prediction": _labels(1, 1, 0, 0, 1, 1)}
    assert _judged("accuracy", "classification", _labels(1, 1, 1, 1, 1, 1), student, 0.9) is None
