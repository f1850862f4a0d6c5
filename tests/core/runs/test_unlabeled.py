"""Rows without labels: students are judged by their agreement with the teacher."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.analysis.run_summary import summarize_run
from gkd_core.config.render import to_toml
from gkd_core.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture
def unlabeled(world, tmp_path):
    """The settings of a split of the world without its labels: `unlabeled("train")`."""

    def _unlabeled(*names):
        for name in names:
            rows = map(json.loads, (world / f"{name}.jsonl").read_text().splitlines())
            lines = [json.dumps({"text": row["text"]}) + "\n" for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        return [f"task.{name}={tmp_path / name}.jsonl" for name in names]

    return _unlabeled


def finish(run):
    run.execute()
    (run.directory / "config.toml").write_text(to_toml(run.resolved))
    return summarize_run(run)


def classes_of(directory, texts):
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokens = AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).logits.argmax(-1)


def entries(run, key):
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def test_student_is_judged_by_agreement_with_the_teacher(prepare_run, unlabeled, world):
    run = prepare_run("method=soft", "training.epochs=2", *unlabeled("train", "validation", "test"))
    spec = run.last
    assert (spec.data.classes, spec.data.train.labels) == (("neg", "pos"), None)
    summary = finish(run)

    theirs, ours = (classes_of(m, spec.data.test.text) for m in (world / "teacher", run.student))
    agreement = float((theirs == ours).double().mean())
    teacher, student = summary.comparison.rows
    assert teacher.metrics["agreement"] == 1.0
    assert student.metrics["agreement"] == pytest.approx(agreement)
    assert set(student.metrics) == {"loss", "agreement"}
    assert summary.comparison.columns() == ["model", "agreement", "weights", "disk", "ms"]

    best = run.results[spec.name]
    assert (best.metric, best.best) == ("agreement", max(entries(run, "validation/agreement")))
    theirs, ours = (
        classes_of(m, spec.data.validation.text) for m in (world / "teacher", run.student)
    )
    assert best.best == pytest.approx(float((theirs == ours).double().mean()))
    assert list(run.results) == [spec.name]
    note = "agreement on 40 test rows, which have no labels; agreement: accuracy with the answers"
    assert f"{note} of teacher as labels" in summary.report.read_text()


def test_command_says_how_students_are_judged(invoke, unlabeled, world, tmp_path):
    unlabeled("train")
    flags = ["--method", "soft", "--teacher", world / "teacher", "--student-layers", 2]
    settings = ["--set", "training.epochs=1", "--set", "output.reuse=false"]
    done = invoke("run", *flags, "--data", tmp_path / "train.jsonl", *settings, "--output", "run")
    assert done.code == 0, done.err
    assert "agreement on 10 validation rows, which have no labels" in done.out
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "judge" in log
    assert "accuracy with the answers of teacher as labels: the rows to validate have no" in log

    again = ["eval", "run/student", "run/config.toml", "--json"]
    done = invoke(*again, "--set", f"task.test={world / 'test.jsonl'}")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metric"] == "accuracy"
    refused = invoke(*again)
    assert refused.code != 0
    assert "have no labels to evaluate by" in refused.err


def test_labeled_rows_judge_where_there_are_any(prepare_run, unlabeled):
    run = prepare_run("method=soft", *unlabeled("train"))
    assert run.last.data.validation.labels is not None
    run.execute()
    assert run.results[run.last.name].metric == "accuracy"
    run = prepare_run("method=soft", *unlabeled("train", "validation"), directory="second")
    summary = finish(run)
    assert run.results[run.last.name].metric == "agreement"
    assert summary.comparison.metric == "accuracy"
    assert summary.comparison.rows[0].kept == 1.0


def test_methods_that_need_labels_are_refused(prepare_run, unlabeled):
    rows = unlabeled("train", "validation", "test")
    for method in ("hard", "soft+hard", "kd"):
        with pytest.raises(ConfigError, match=r"needs labels, but .*train\.jsonl.* has none"):
            prepare_run(f"method={method}", *rows)
    with pytest.raises(ConfigError, match=r"baseline = true .* trains a student on labels alone"):
        prepare_run("method=soft", "baseline=true", *rows)


def test_rows_with_labels_need_labels_to_validate_by(prepare_run, unlabeled):
    with pytest.raises(DataError, match=r"validation.jsonl has no labels"):
        prepare_run("method=soft", *unlabeled("validation"))


def test_rows_of_which_some_have_labels_are_refused_with_their_number(prepare_run, world, tmp_path):
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in rows[3:10]:
        row["label"] = None
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        prepare_run("method=soft", f"task.train={path}")
    message = str(caught.value)
    assert f"{path}:4: the row has no label (column 'label')" in message
    assert "7 of 96 rows have no label. Label or remove them; or leave the labels of all" in message
