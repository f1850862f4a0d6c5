"""The verdict on a run: which model is better, how sure that is, and what to try."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from gkd_core.analysis.comparison import Compared, Comparison, Row
from gkd_core.analysis.verdict import verdict
from gkd_core.evaluation.predictions import About, Predictions
from gkd_core.plugins import registry

ROWS = 400
NAMES = {"teacher": "teacher", "baseline": "student, labels only", "student": "student, pkd+soft"}


def right(share):
    """Return which rows are right: the first of them, so that models differ on few."""
    return np.arange(ROWS) < share * ROWS


def accuracy(share):
    """Return a function that computes the accuracy on some of the rows."""
    found = right(share)
    return lambda rows: float(found[rows].mean())


def compared(guessed=0.5, higher_is_better=True, **shares):
    """Return the comparison of models that are right on a share of the rows."""
    rows = [
        Row(NAMES[file], file, {"accuracy": share}, 1, 1, None, None, None)
        for file, share in shares.items()
    ]
    hashes = [str(row) for row in range(ROWS)]
    columns = {"gold": ["a"] * ROWS, "group": pa.nulls(ROWS, pa.string())}
    tables = {
        file: pa.table({"prediction": ["a" if ok else "b" for ok in right(share)]})
        for file, share in shares.items()
    }
    about = About("test", "classification", ("a", "b"), "accuracy")
    return Compared(
        Comparison("accuracy", "test", ROWS, rows, guessed, higher_is_better=higher_is_better),
        Predictions(about, pa.table({"hash": hashes, **columns}), tables, NAMES),
        {file: accuracy(share) for file, share in shares.items()},
        registry().kind("classification"),
    )


def run(needs_labels=False, lr=1e-4):
    method = SimpleNamespace(needs_labels=needs_labels)
    last = SimpleNamespace(
        members=[SimpleNamespace(methods=[method])],
        expression="pkd+soft",
        config=SimpleNamespace(training=SimpleNamespace(lr=lr)),
    )
    resolved = SimpleNamespace(config=SimpleNamespace(seed=7))
    return SimpleNamespace(last=last, resolved=resolved)


def test_a_gain_is_named_with_its_interval_and_its_seed():
    (said,) = verdict(run(), compared(teacher=0.95, baseline=0.7, student=0.8))
    assert said.startswith("distillation is better than labels alone: +0.1000 accuracy on 400 test")
    assert "95% interval +0.0" in said
    assert said.endswith("of one seed (7): --seeds 3 compares several")


def test_a_loss_is_named_with_what_may_help():
    *said, advice = verdict(run(), compared(teacher=0.75, baseline=0.9, student=0.8))
    assert said[0].startswith("labels alone are better than distillation: -0.1000")
    assert said[1].startswith("labels alone are better than teacher: -0.1500")
    assert advice == (
        "what may help: a term for the labels (--method pkd+soft+hard); a better teacher; "
        "another learning rate (--set training.lr=0.0003, now 0.0001)"
    )
    *_, advice = verdict(run(needs_labels=True), compared(baseline=0.9, student=0.8))
    assert "term for the labels" not in advice


def test_a_difference_that_other_rows_might_reverse_is_none():
    said, advice = verdict(run(True), compared(baseline=0.8, student=0.8025))
    assert said.startswith("distillation and labels alone are not told apart: +0.0025")
    assert advice.startswith("what may help: more test rows (task.test); a better teacher;")
    _, poor, _ = verdict(run(), compared(teacher=0.805, baseline=0.8, student=0.8))
    assert poor.startswith("teacher is not shown to be better than labels alone: +0.0050")


def test_a_metric_that_should_be_low_turns_the_verdict_round():
    said, *_ = verdict(run(), compared(None, False, baseline=0.7, student=0.8))
    assert said.startswith("labels alone are better than distillation: +0.1000")


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (
            0.52,
            0.7,
            ["warning: teacher is hardly better than the most frequent class alone (0.5200 and"],
        ),
        (
            0.8,
            0.8,
            ["the student is not told apart from teacher, which may have taught all: +0."],
        ),
        (0.9, 0.7, []),
        (0.6, 0.9, ["the student is better than teacher: +0.3000"]),
    ],
)
def test_a_poor_teacher_is_named_without_a_baseline_too(teacher, student, expected):
    said = verdict(run(), compared(teacher=teacher, student=student))
    assert len(said) == len(expected)
    for sentence, start in zip(said, expected, strict=True):
        assert sentence.startswith(start)
