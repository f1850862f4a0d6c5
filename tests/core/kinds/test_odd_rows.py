"""Values of a type that a column should not have: the row is refused with its line, or read."""

from __future__ import annotations

import json

import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.data.files import Files
from gkd_core.errors import DataError
from gkd_core.plugins import registry

ROWS = {
    "classification": {"text": "a", "label": "x"},
    "regression": {"sentence1": "a", "sentence2": "b", "label": 0.5},
    "multi-label": {"text": "a", "labels": ["x", "y"]},
    "token-classification": {"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]},
    "multiple-choice": {"context": "a", "choices": ["b", "c"], "label": 1},
    "span-extraction": {
        "question": "a",
        "context": "b c",
        "answers": {"text": ["c"], "answer_start": [2]},
    },
    "embedding": {"sentence1": "a", "sentence2": "b", "score": 0.5},
    "causal-lm": {"text": "a"},
}
ODD = [
    *(None, True, 3, -1, 2.5, float("nan"), float("inf"), "", " ", "x"),
    *([], [None], [1], ["a", None], [["a"]], [{}], {}, {"text": None, "answer_start": None}),
    *({"text": ["c"], "answer_start": []}, {"text": ["c"], "answer_start": ["2"]}),
    *({"text": [3], "answer_start": [2]}, {"text": "c", "answer_start": 2}),
]


def refusal(path, kind, rows):
    """What is said against rows; the name of the file if nothing is."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(train=str(path), validation=str(path), kind=kind)
    try:
        Files(config, registry().kinds).load(kind, 1)
    except DataError as error:
        return str(error)
    return f"{path}:3: "


@pytest.mark.parametrize(("kind", "column"), [(k, c) for k, row in ROWS.items() for c in row])
def test_odd_value_is_read_or_refused_with_its_line(tmp_path, kind, column):
    row, path = ROWS[kind], tmp_path / "rows.jsonl"
    good = [row, row | {"label": "y"} if kind == "classification" else row]
    for value in ODD:
        odd = row | {column: value}
        assert f"{path}:3: " in refusal(path, kind, [*good, odd]), value
        assert str(path) in refusal(path, kind, [odd, odd]), value
