from __future__ import annotations

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.files import Files
from gkd_core.data.holdout import fewer
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry

ROWS = [(f"text number {i}", "good" if i % 2 else "bad") for i in range(20)]


def load(train, default="masked-lm", seed=1, **settings):
    task = Files(TaskConfig(train=str(train), **settings), registry().kinds)
    task.check()
    return task.load(default, seed)


def fails(train, **settings):
    with pytest.raises(DataError) as caught:
        load(train, **settings)
    return str(caught.value)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def train(tmp_path):
    return jsonl(tmp_path / "train.jsonl", [{"text": t, "label": y} for t, y in ROWS])


def test_every_format_gives_the_same_rows(tmp_path, train):
    table = {"text": [t for t, _ in ROWS], "label": [y for _, y in ROWS]}
    records = [{"text": t, "label": y} for t, y in ROWS]
    write(tmp_path / "train.json", json.dumps(records))
    write(tmp_path / "train.csv", "text,label\n" + "".join(f'"{t}",{y}\r\n' for t, y in ROWS))
    write(tmp_path / "train.tsv", "text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in ROWS))
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    expected = load(train)
    assert expected.kind == "classification"
    assert expected.classes == ("bad", "good")
    for suffix in ("json", "csv", "tsv", "parquet"):
        assert load(tmp_path / f"train.{suffix}").rows_hash == expected.rows_hash


def test_csv_keeps_quoted_commas_and_line_breaks(tmp_path):
    path = write(tmp_path / "a.csv", '\ufefftext,label\n"one, ""two""\nthree",0\nfour,1\nfive,1\n')
    data = load(path, validation=str(path))
    assert data.train.text[0] == 'one, "two"\nthree'


def test_tsv_takes_quotes_literally(tmp_path):
    path = write(tmp_path / "a.tsv", 'sentence\tlabel\n"half a quote\t0\nb\t1\n')
    assert load(path, validation=str(path)).train.text[0] == '"half a quote'


def test_given_splits_are_used_as_they_are(tmp_path, train):
    other = jsonl(tmp_path / "other.jsonl", [{"text": "x", "label": "good"}])
    data = load(train, validation=str(other), test=str(other))
    assert (len(data.train), data.validation.text, data.test.labels) == (20, ["x"], [1])
    assert data.source == f"{train}, {other}, {other}"


def test_directory_is_searched_for_splits(tmp_path, train):
    jsonl(tmp_path / "dev.jsonl", [{"text": "x", "label": "good"}])
    write(tmp_path / "test.csv", "text,label\ny,bad\n")
    data = load(tmp_path)
    assert (data.validation.text, data.test.text) == (["x"], ["y"])


def test_directory_with_two_training_files_is_refused(tmp_path, train):
    write(tmp_path / "train.csv", "text,label\ny,bad\n")
    assert "several files for train: train.csv, train.jsonl" in fails(tmp_path)


def test_directory_without_training_file_is_refused(tmp_path):
    assert "has no training file" in fails(tmp_path)


@pytest.mark.parametrize(
    ("columns", "text", "pair"),
    [
        (["sentence", "label"], "sentence", None),
        (["Text", "Label"], "Text", None),
        (["premise", "hypothesis", "label", "idx"], "premise", "hypothesis"),
        (["question", "sentence", "target"], "question", "sentence"),
        (["sentence1", "sentence2", "class"], "sentence1", "sentence2"),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, columns, text, pair):
    rows = [{name: f"{name} {i}" for name in columns} for i in range(4)]
    data = load(jsonl(tmp_path / "a.jsonl", rows), validation=str(tmp_path / "a.jsonl"))
    assert data.train.text[0] == f"{text} 0"
    assert data.train.pair is None if pair is None else data.train.pair[0] == f"{pair} 0"


def test_named_columns_win(tmp_path):
    rows = [{"text": "no", "a": f"a{i}", "b": f"b{i}", "y": i, "label": 0} for i in range(4)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    data = load(path, validation=str(path), text="a", text_pair="b", label="y")
    assert (data.train.text[1], data.train.pair[1], data.classes[1]) == ("a1", "b1", "1")


def test_ambiguous_columns_are_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "sentence": "b", "label": 1}])
    message = fails(path)
    assert "several text columns" in message
    assert "--set task.text=COLUMN" in message
    message = fails(jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": 1, "target": 1}]))
    assert "several label columns, 'label', 'target'" in message


def test_missing_columns_are_refused_with_those_found(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"txt": "a", "label": 1}])
    assert "no text column: the columns are 'txt', 'label'" in fails(path)
    assert "Did you mean 'label'?" in fails(path, label="lable")
    path = jsonl(tmp_path / "b.jsonl", [{"text": "a"}])
    message = fails(path)
    assert "no label column" in message
    assert "--set task.label=COLUMN" in message


def test_pair_without_text_is_refused(train):
    with pytest.raises(ConfigError, match=r"task\.text is not set"):
        load(train, text_pair="text")


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "first"),
    [
        ([10, 9, -1], "classification", ("-1", "9", "10"), 2),
        (["b", "a", "b"], "classification", ("a", "b"), 1),
        (["1", "x", "1"], "classification", ("1", "x"), 0),
        ([True, False, True], "classification", ("false", "true"), 1),
        ([1.0, 0.0, 1.0], "classification", ("0", "1"), 1),
        ([1, True, "1", 1.0, 0], "classification", ("0", "1", "true"), 1),
        ([5.0, 3.75, 1], "regression", (), 5.0),
        (["0.25", "1.0", "2"], "regression", (), 0.25),
    ],
)
def test_labels_decide_the_kind(tmp_path, labels, kind, classes, first):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    data = load(path, validation=str(path))
    assert (data.kind, data.classes, data.train.labels[0]) == (kind, classes, first)


def test_given_kind_wins_over_the_labels(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i} for i in range(3)])
    data = load(path, validation=str(path), kind="regression")
    assert data.train.labels == [0.0, 1.0, 2.0]
    path = write(tmp_path / "a.csv", "text,label\na,3.1\nb,3.10\n")
    assert load(path, validation=str(path), kind="classification").classes == ("3.1", "3.10")


BAD_ROWS = [
    ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": \n', ":3: invalid JSON: Expecting value"),
    ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', ":2: expected an object"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', ":2: the row has no label"),
    ("a.jsonl", '{"text": " ", "label": 1}\n', ":1: the text is empty (column 'text')"),
    ("a.jsonl", '{"text": 3, "label": 1}\n', ":1: the text is 3, not a string"),
    ("a.jsonl", '{"text": "a", "label": [1]}\n', ":1: the label is [1]"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xff"}\n', ":2: not UTF-8: byte 0xff at"),
    ("a.csv", 'text,label\n"a\nb",1\nc\n', ":4: 1 fields, but the header has 2"),
    ("a.csv", 'text,label\na,1\n"b,1\n', ":3: not valid csv: unexpected end of data"),
    ("a.csv", b"text,label\na,1\n\xe9,1\n", ":3: not UTF-8: byte 0xe9 at position 1"),
    ("a.tsv", "text\tlabel\na\t1\nb\t\n", ":3: the row has no label (column 'label')"),
    ("a.json", '[{"text": "a", "label": 1}, 3]', ": row 2: expected an object"),
    ("a.json", '[\n{"text": "a" "label": 1}]', ":2: invalid JSON"),
    ("a.csv", "text,text\na,1\n", ":1: the first line must give every column a unique name"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS)
def test_bad_row_is_told_with_file_and_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    assert f"{path}{message}" in fails(path)


def test_bad_parquet_row_is_told_with_its_number(tmp_path):
    table = pyarrow.table({"text": ["a", None], "label": [0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet: row 2: the text is empty" in fails(tmp_path / "a.parquet")
    message = fails(write(tmp_path / "b.parquet", "text,label\n"))
    assert "is not a readable parquet file" in message


def test_five_bad_rows_are_shown_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,0\n" + "c\n" * 12)
    message = fails(path)
    assert message.count("1 fields") == 5
    assert f"{path}:4: " in message
    assert f"{path}:8: " in message
    assert f"and 7 more bad rows in {path}" in message


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unseen_label_is_told_with_file_and_line(tmp_path, train, split):
    path = write(tmp_path / "other.csv", "text,label\na,good\nb,ugly\n")
    message = fails(train, **{split: str(path)})
    assert f"{path}:3: label 'ugly' never occurs in training" in message
    assert "'bad', 'good'" in message


def test_regression_needs_numbers(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,0.5\nb,high\n")
    assert f"{path}:3: label 'high' is not a number" in fails(path, kind="regression")


@pytest.mark.parametrize("content", ["text,label\na,-1\nb,-1\n", "text\na\n", "text,label\na,\n"])
def test_test_file_without_labels_is_refused(tmp_path, train, content):
    path = write(tmp_path / "other.csv", content)
    assert f"{path} has no labels" in fails(train, test=str(path))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.tsv"])
def test_empty_file_is_refused(tmp_path, name):
    assert "is empty" in fails(write(tmp_path / name, ""))


def test_header_alone_counts_as_empty(tmp_path):
    assert "is empty" in fails(write(tmp_path / "a.csv", "text,label\n"))


def test_one_class_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,1\n")
    assert f"every row of {path} has the label '1'" in fails(path)


def test_label_column_without_repetition_is_refused(tmp_path):
    rows = [{"text": f"t{i}", "target": f"summary {i}"} for i in range(30)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert "30 different labels in 30 rows" in fails(path)


def test_missing_file_suggests_the_nearest_name(tmp_path, train):
    assert "Did you mean 'train.jsonl'?" in fails(tmp_path / "trian.jsonl")
    assert "task.validation" in fails(train, validation=str(tmp_path / "no.csv"))
    assert "there is no directory" in fails(tmp_path / "no" / "train.csv")


def test_unknown_suffix_is_refused(tmp_path):
    message = fails(write(tmp_path / "a.jsnl", ""))
    assert "Did you mean '.jsonl'?" in message
    assert ".parquet" in message


def test_train_is_needed():
    with pytest.raises(ConfigError, match=r"task\.train is not set"):
        Files(TaskConfig()).check()


def test_held_out_rows_are_stratified_and_seeded(tmp_path):
    rows = [{"text": f"t{i}", "label": int(i % 10 == 0)} for i in range(400)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    data = load(path)
    assert Counter(data.validation.labels) == {0: 36, 1: 4}
    assert not set(data.validation.text) & set(data.train.text)
    assert len(data.train) == 360
    assert load(path).rows_hash == data.rows_hash
    assert load(path, seed=2).rows_hash != data.rows_hash


def test_held_out_rows_leave_no_duplicate_and_every_class_in_training(tmp_path):
    rows = [{"text": f"t{i % 7}", "label": i % 3} for i in range(60)]
    rows.append({"text": "alone", "label": 3})
    path = jsonl(tmp_path / "a.jsonl", rows)
    for share in (0.01, 0.3, 0.9):
        data = load(path, validation_share=share)
        assert len(data.validation) > 0
        assert not set(data.validation.text) & set(data.train.text)
        assert set(data.train.labels) == {0, 1, 2, 3}
        assert len(data.train) + len(data.validation) == 61


def test_too_few_rows_to_hold_out_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,0\nb,1\n")
    assert "too few distinct rows" in fails(path)


def test_txt_is_split_at_blank_lines(tmp_path):
    path = write(tmp_path / "a.txt", "\none\ntwo\n\n\nthree\n\n")
    data = load(path, default="causal-lm", validation=str(path))
    assert data.train.text == ["one\ntwo", "three"]
    assert (data.kind, data.train.labels, data.classes) == ("causal-lm", None, ())


def test_txt_without_blank_lines_is_split_at_lines(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\nthree\n\n")
    assert load(path, validation=str(path)).train.text == ["one", "two", "three"]


def test_txt_without_language_modeling_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "one\n")
    assert "has no labels for classification" in fails(path, default="classification")


def test_table_serves_language_modeling_without_labels(tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}"} for i in range(3)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="no label column"):
        load(path, default="causal-lm")
    data = load(path, default="causal-lm", validation=str(path), kind="masked-lm")
    assert data.kind == "masked-lm"
    assert data.train.text == ["p0", "p1", "p2", "h0", "h1", "h2"]


def test_fingerprint_changes_with_any_row(tmp_path):
    prints = set()
    for content in ("a,0\nb,1\n", "a,1\nb,0\n", "a,0\nc,1\n", "a,0\nb,1\nc,1\n", "a,x\nb,y\n"):
        path = write(tmp_path / "a.csv", "text,label\n" + content)
        prints.add(load(path, validation=str(path)).rows_hash)
    assert len(prints) == 5


def test_fewer_rows_are_taken_evenly_from_the_classes():
    labels = [0] * 30 + [1] * 60 + [2] * 10
    split = Split([f"text {i}" for i in range(100)], labels=labels)
    part = fewer(split, 20)
    assert [part.labels.count(label) for label in range(3)] == [6, 12, 2]
    assert part == fewer(split, 20)
    assert fewer(split, 500) == split
