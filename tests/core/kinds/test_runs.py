"""Whole runs of each kind: a teacher is fine-tuned, and students learn from it."""

from __future__ import annotations

import json

import pytest
from tests.grids import first_of

MODELS = {
    "multi-label": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "multiple-choice": "BertForMultipleChoice",
    "span-extraction": "BertForQuestionAnswering",
}
CHANCE = {
    "multi-label": 0.75,
    "token-classification": 0.6,
    "multiple-choice": 0.45,
    "span-extraction": 45.0,
}
"""What a guess does not reach."""
QUICK = "token-classification"
METHODS = ("soft+minilm", "soft", "tinybert+soft")
"""The last one compares hidden states."""


def _settings(folder, output, *more):
    return [
        *("--data", folder / "train.jsonl", "--output", output),
        *("--set", f"task.validation={folder / 'validation.jsonl'}"),
        *("--set", f"task.test={folder / 'test.jsonl'}", "--set", "task.max_length=32"),
        *("--set", "training.batch_size=16", "--set", "training.lr=3e-3"),
        *("--set", "output.tensorboard=false", "--set", "output.reuse=false"),
        *(part for setting in more for part in ("--set", setting)),
    ]


def _comparison(output):
    return json.loads((output / "results.json").read_text())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "methods"),
    first_of([(QUICK, METHODS[:1]), *((kind, METHODS) for kind in MODELS)]),
)
def test_a_teacher_is_fine_tuned_and_students_distilled(kind, methods, task, invoke, tmp_path):
    folder, teacher = task(kind), tmp_path / "teacher"
    flags = ["--method", "hard", "--student", folder / "untrained"]
    done = invoke("run", *flags, *_settings(folder, teacher, "training.epochs=12"))
    assert done.code == 0, done.err
    trained = json.loads((teacher / "student" / "config.json").read_text())
    assert trained["architectures"] == [MODELS[kind]]
    for method in methods:
        student = tmp_path / method
        # The kind is found by the columns.
        flags = ["--method", method, "--teacher", teacher / "student", "--student-layers", 2]
        done = invoke("run", *flags, *_settings(folder, student, "training.epochs=12"))
        assert done.code == 0, done.err
        found = _comparison(student)
        metric = found["metric"]
        first, last = found["rows"][0], found["rows"][-1]
        assert first["metrics"][metric] > CHANCE[kind]
        assert last["metrics"][metric] > CHANCE[kind], method
        assert 0 <= last["agreement"] <= 1


CLASSES = {
    "choices": "BertForMultipleChoice",
    "span-classification": "BertForTokenClassification",
    "masked-cloze": "BertForMaskedLM",
    "causal-cloze": "LlamaForCausalLM",
}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        "masked-cloze",
        pytest.param("choices", marks=pytest.mark.exhaustive),
        pytest.param("span-classification", marks=pytest.mark.exhaustive),
        pytest.param("causal-cloze", marks=pytest.mark.exhaustive),
    ],
)
def test_kinds_of_superglue_are_planned_trained_and_distilled(rows, task, invoke, tmp_path):
    folder = task(rows)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    kind = [f"task.kind={rows}"] if rows.endswith("cloze") else []  # columns show the others
    flags = ["--method", "hard", "--student", folder / "untrained"]
    done = invoke("run", *flags, *_settings(folder, teacher, "training.epochs=4", *kind))
    assert done.code == 0, done.err
    trained = json.loads((teacher / "student" / "config.json").read_text())
    assert trained["architectures"] == [CLASSES[rows]]
    flags = ["--method", "soft+minilm", "--teacher", teacher / "student", "--student-layers", 2]
    settings = _settings(folder, student, "training.epochs=2", *kind)
    for command in ("explain", "plan"):
        done = invoke(command, *flags, *settings)
        assert done.code == 0, done.err
    done = invoke("run", *flags, *settings)
    assert done.code == 0, done.err
    first, last = _comparison(student)["rows"][0], _comparison(student)["rows"][-1]
    assert first["metrics"]["accuracy"] > (0.35 if rows == "choices" else 0.6)
    assert 0 <= last["agreement"] <= 1


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_embeddings_are_distilled_without_labels(method, task, invoke, tmp_path):
    folder, output = task("embedding"), tmp_path / "student"
    flags = ["--method", method, "--teacher", folder / "untrained", "--student-layers", 2]
    more = ("task.kind=embedding", "training.epochs=8")
    done = invoke("run", *flags, *_settings(folder, output, *more))
    assert done.code == 0, done.err
    found = _comparison(output)
    assert found["metric"] == "spearman"
    trained = json.loads((output / "student" / "config.json").read_text())
    assert trained["architectures"] == ["BertModel"]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss/soft"] for entry in map(json.loads, lines) if "loss/soft" in entry]
    assert losses[-1] < losses[0] / 2


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_teacher_of_embeddings_is_fine_tuned_on_scores(task, invoke, tmp_path):
    folder, output = task("similarity"), tmp_path / "teacher"
    flags = ["--method", "hard", "--student", folder / "untrained"]
    more = ("task.kind=similarity", "training.epochs=6")
    done = invoke("run", *flags, *_settings(folder, output, *more))
    assert done.code == 0, done.err
    (trained,) = _comparison(output)["rows"]
    assert trained["metrics"]["spearman"] > 0.6
    assert trained["metrics"]["loss"] < 0.05  # scores are divided by the largest, 5
    flags = ["soft", "--teacher", output / "student", "--student-layers", 2]
    more = ["--set", "task.kind=embedding", "--data", folder / "train.jsonl"]
    assert invoke("explain", *flags, *more).code == 0


def test_a_method_that_is_not_for_a_kind_is_refused(task, invoke):
    folder = task("multiple-choice")
    flags = [
        "--method",
        "pkd",
        "--student",
        folder / "untrained",
        "--teacher",
        folder / "untrained",
    ]
    done = invoke("explain", *flags, "--data", folder / "train.jsonl")
    assert done.code == 2
    assert "pkd is not made for task.kind = 'multiple-choice', but for" in done.err


def test_labels_of_embeddings_are_nothing_to_learn_from(task, invoke):
    folder = task("embedding")
    flags = ["--method", "hard", "--student", folder / "untrained"]
    more = ["--set", "task.kind=embedding", "--data", folder / "train.jsonl"]
    done = invoke("explain", *flags, *more)
    assert done.code == 2
    assert "hard is not made for task.kind = 'embedding'" in done.err
