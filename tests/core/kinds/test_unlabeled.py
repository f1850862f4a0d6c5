"""Rows without labels, of every kind: read, learned from, and judged by a teacher's answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModel

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.batch import UNKNOWN
from gkd_core.data.collate import Collator
from gkd_core.data.files import Files
from gkd_core.errors import DataError
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.plugins import registry

LABELS = {
    "regression": "score",
    "multi-label": "labels",
    "token-classification": "ner_tags",
    "multiple-choice": "label",
    "span-extraction": "answers",
}
CLASSES = {
    "multi-label": ("person", "place"),
    "token-classification": ("B-LOC", "B-PER", "I-PER", "O"),
}
PERFECT = {"span-extraction": 100.0}


@pytest.fixture
def teacher(task, tokenizer, tmp_path):
    """`teacher(kind)`: a model with random weights; its unlabeled rows are written beside it."""

    def _teacher(name):
        # Pairs of texts with a score are those of the embeddings.
        folder = task("embedding" if name == "regression" else name)
        kind = registry().kind(name)
        config = AutoConfig.from_pretrained(folder / "untrained", initializer_range=0.5)
        config.num_labels = 1
        kind.configure(config, CLASSES.get(name, ()))
        torch.manual_seed(3)
        model = kind.auto.from_config(config)
        model.base_model.load_state_dict(
            AutoModel.from_pretrained(folder / "untrained").state_dict(), strict=False
        )
        model.save_pretrained(tmp_path / "teacher")
        tokenizer.save_pretrained(tmp_path / "teacher")
        for part in ("train", "validation"):
            rows = map(json.loads, (folder / f"{part}.jsonl").read_text().splitlines())
            lines = [json.dumps({n: v for n, v in r.items() if n != LABELS[name]}) for r in rows]
            (tmp_path / f"{part}.jsonl").write_text("\n".join(lines[:32]))
        return tmp_path / "teacher"

    return _teacher


EMPTY = {
    "regression": None,
    "multi-label": [],
    "token-classification": None,
    "multiple-choice": -1,
    "span-extraction": {"text": [], "answer_start": []},
}
"""What stands in the column of labels of rows without."""


def read(folder, name, **settings):
    config = TaskConfig(train=str(folder / "train.jsonl"), kind=name, **settings)
    return Files(config, registry().kinds).load("masked-lm", 1)


@pytest.mark.parametrize("name", LABELS)
def test_a_model_agrees_with_its_own_answers(name, teacher, tokenizer, tmp_path):
    place, kind = teacher(name), registry().kind(name)
    data = read(tmp_path, name)
    assert data.train.labels is None
    rows, classes = data.train, CLASSES.get(name, data.classes)
    model = kind.auto.from_pretrained(place).eval()
    kind.prepare(model, classes)
    collator = Collator(tokenizer, kind, 0.15, 0)

    def judged(labels):
        encoded = kind.encode(replace(rows, labels=labels), tokenizer, 32, classes)
        return evaluate(model, encoded, collator, kind, torch.device("cpu"))

    answers = kind.answers(judged(kind.any_labels(rows, classes)).predictions, rows, classes)
    assert len(answers) == len(rows)
    found = judged(answers).metrics[kind.metric.name]
    assert found == pytest.approx(PERFECT.get(name, 1.0))


@pytest.mark.parametrize("name", ["token-classification", "span-extraction"])
def test_targets_without_labels_are_where_labels_would_be(name, teacher, task, tokenizer, tmp_path):
    teacher(name)
    kind, labeled = registry().kind(name), read(task(name), name)
    collator = Collator(tokenizer, kind, 0.15, 0)
    rows = range(len(labeled.train))
    batches = [
        collator.collate(kind.encode(split, tokenizer, 32, labeled.classes), rows, epoch=0)
        for split in (labeled.train, replace(labeled.train, labels=None))
    ]
    assert torch.equal(*(batch.targets.mask for batch in batches))
    unknown = batches[1].labels[batches[1].targets.mask]
    assert unknown.eq(UNKNOWN).all()


def test_labels_of_other_splits_are_read_where_training_rows_have_none(task, teacher, tmp_path):
    for name in ("multi-label", "token-classification", "multiple-choice", "span-extraction"):
        teacher(name)
        data = read(tmp_path, name, validation=str(task(name) / "validation.jsonl"))
        assert (data.train.labels, len(data.validation.labels)) == (None, 48)
        whole = read(task(name), name)
        assert data.classes == whole.classes


def test_an_empty_column_of_labels_counts_as_none(teacher, tmp_path):
    for name, empty in EMPTY.items():
        teacher(name)
        rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        column = "label" if name == "regression" else LABELS[name]
        lines = [json.dumps(row | {column: empty}) + "\n" for row in rows]
        (tmp_path / "train.jsonl").write_text("".join(lines))
        assert read(tmp_path, name).train.labels is None


def test_a_label_column_that_no_table_has_is_refused(teacher, tmp_path):
    for name in LABELS:
        teacher(name)
        with pytest.raises(DataError, match=r"has no column 'lable' \(task\.label\)"):
            read(tmp_path, name, label="lable")


@pytest.mark.parametrize(
    "name",
    [
        "token-classification",
        pytest.param("regression", marks=pytest.mark.exhaustive),
        pytest.param("multi-label", marks=pytest.mark.exhaustive),
        pytest.param("multiple-choice", marks=pytest.mark.exhaustive),
        pytest.param("span-extraction", marks=pytest.mark.exhaustive),
    ],
)
def test_a_student_is_distilled_without_labels(name, teacher, invoke, tmp_path):
    flags = ["--method", "soft", "--teacher", teacher(name), "--student-layers", 2]
    rows = {part: tmp_path / f"{part}.jsonl" for part in ("train", "validation")}
    settings = [f"task.validation={rows['validation']}", "task.max_length=32", "training.epochs=2"]
    settings += ["training.batch_size=16", "training.lr=1e-3", "output.reuse=false"]
    more = [part for setting in settings for part in ("--set", setting)]
    done = invoke("run", *flags, "--data", rows["train"], *more, "--output", "run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    first, last = (row["metrics"]["agreement"] for row in found["rows"])
    assert first == pytest.approx(PERFECT.get(name, 1.0))
    assert last <= first
    assert found["judged_by"].endswith("with the answers of teacher as labels")
