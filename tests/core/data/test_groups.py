"""Rows that belong together: read from a column, held out together, measured together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.assemble import hash_rows
from gkd_core.data.files import Files
from gkd_core.data.holdout import fewer, hold_out
from gkd_core.errors import DataError
from gkd_core.plugins import registry

QUESTIONS, ANSWERS = 20, 4


def rows():
    return [
        {"text": f"question {q} answer {a}", "label": (q + a) % 2, "question": q}
        for q in range(QUESTIONS)
        for a in range(ANSWERS)
    ]


@pytest.fixture
def load(tmp_path):
    def _load(table, **settings):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        task = Files(TaskConfig(train=str(path), **settings), registry().kinds)
        return task, task.load("classification", 1)

    return _load


def test_groups_are_read_and_held_out_together(load):
    _, data = load(rows(), group="question", validation_share=0.2)
    train, validation = set(data.train.group), set(data.validation.group)
    assert not train & validation
    assert train | validation == {str(q) for q in range(QUESTIONS)}
    assert len(data.validation) == ANSWERS * 4
    for split in (data.train, data.validation):
        named = [text.split()[1] for text in split.text]
        assert named == list(split.group)


def test_rows_of_equal_texts_join_their_groups():
    texts = ["a", "b", "b", "c", "c", "d", *map(str, range(12))]
    groups = ["1", "1", "2", "2", "3", "4", *(str(10 + n) for n in range(12))]
    split = Split(texts, labels=[0, 1] * 9, group=groups)
    for seed in range(20):
        train, _ = hold_out(split, 0.5, seed, "rows")
        linked = [text for text in train.text if text in ("a", "b", "c")]
        assert linked in ([], ["a", "b", "b", "c", "c"])


def test_without_groups_the_same_rows_are_held_out_as_ever():
    split = Split([f"row {n // 2}" for n in range(40)], labels=[n % 3 for n in range(40)])
    alone = replace(split, group=list(map(str, range(40))))
    for seed in range(5):
        held = [part.text for part in hold_out(split, 0.25, seed, "rows")]
        assert held == [part.text for part in hold_out(alone, 0.25, seed, "rows")]


def test_fewer_rows_keep_their_groups_and_the_hash_covers_them():
    split = Split(["a", "b", "c"], labels=[0, 1, 0], group=["x", "y", "x"])
    kept = fewer(split, 2)
    numbers = [split.text.index(text) for text in kept.text]
    assert kept.group == [split.group[number] for number in numbers]
    assert kept.labels == [split.labels[number] for number in numbers]
    names = ("0", "1")
    hashes = {
        hash_rows("classification", names, {"train": one})
        for one in (split, replace(split, group=None), replace(split, group=["x", "x", "y"]))
    }
    assert len(hashes) == 3


def test_a_group_is_right_if_all_of_its_rows_are(load):
    task, data = load(rows(), group="question")
    split = replace(data.validation, group=["a", "a", "b", "b"], labels=[0, 1, 1, 0])
    predictions = torch.tensor([0, 1, 1, 1])
    assert task.measure(split, predictions, data) == {"group_accuracy": 0.5}
    assert task.measure(replace(split, group=None), predictions, data) == {}


def test_a_row_without_a_group_is_told_with_its_line(load):
    table = rows()
    table[6]["question"] = None
    with pytest.raises(DataError, match=r"train.jsonl:7: the row has no group \(column 'question'"):
        load(table, group="question")
    with pytest.raises(DataError, match=r"no column 'questions' \(task.group\). Did you mean"):
        load(rows(), group="questions")
