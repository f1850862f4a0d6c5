from __future__ import annotations

import json
import logging

import datasets
import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.data import hub_column, spooled_table, stored_rows
from gkd_core.data.hub import Hub, _address
from gkd_core.data.hub_column import HubColumn
from gkd_core.data.stored_column import StoredColumn
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """Write a local dataset: splits as jsonl."""

    def write(**splits):
        directory = tmp_path / "dataset"
        directory.mkdir()
        for split, rows in splits.items():
            (directory / f"{split}.jsonl").write_text(lines(rows))
        return str(directory)

    return write


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def labeled(count, start=0, classes=("bad", "good")):
    return [
        {"sentence": f"row {i}", "label": classes[i % len(classes)]}
        for i in range(start, start + count)
    ]


def load(train, **settings):
    task = Hub(TaskConfig(name="hub", train=train, **settings), registry().kinds)
    task.check()
    return task.load("masked-lm", 1)


def test_local_dataset_is_read(folder):
    data = load(folder(train=labeled(8), validation=labeled(4, 8), test=labeled(2, 12)))
    assert (data.kind, data.classes) == ("classification", ("bad", "good"))
    assert data.train.text[:2] == ["row 0", "row 1"]
    assert data.validation.labels == [0, 1, 0, 1]
    assert data.test.text == ["row 12", "row 13"]


def test_texts_of_a_large_dataset_are_kept_on_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "gkd"))
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 3)
    data = load(folder(train=labeled(8), validation=labeled(4, 8)))
    assert all(isinstance(split.text, StoredColumn) for split in (data.train, data.validation))
    assert list(data.train.text) == [f"row {number}" for number in range(8)]
    assert list(data.validation.text) == [f"row {number}" for number in range(8, 12)]


def test_rows_of_a_large_dataset_are_read_once_until_they_change(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "gkd"))
    monkeypatch.setattr(stored_rows, "LARGE", 0)
    path = folder(train=labeled(8), validation=labeled(4, 8))
    made = []

    def read():
        task = Hub(TaskConfig(name="hub", train=path), registry().kinds)
        return stored_rows.stored_rows(
            task.files(), [], [], lambda: made.append(1) or task.load("masked-lm", 1)
        )

    first, second = read(), read()
    assert (len(made), first.rows_hash) == (1, second.rows_hash)
    assert (list(second.train.text), list(second.train.labels)) == (
        [f"row {number}" for number in range(8)],
        [0, 1] * 4,
    )
    (tmp_path / "dataset" / "train.jsonl").write_text(lines(labeled(9, 20)))
    assert list(read().train.text) == [f"row {number}" for number in range(20, 29)]


def test_column_has_names_in_place_of_class_ids(monkeypatch):
    monkeypatch.setattr(hub_column, "PART", 2)
    names = datasets.ClassLabel(names=["no", "yes"])
    features = {"one": names, "several": datasets.List(names), "number": datasets.Value("int64")}
    columns = {"one": [1, -1, None], "several": [[0, 1], [], [1]], "number": [1, -1, None]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    one, several, number = (HubColumn(rows, name) for name in columns)
    assert one.classes == several.classes == ("no", "yes")
    assert list(one) == ["yes", None, None]
    assert list(several) == [["no", "yes"], [], ["yes"]]
    assert (one[0], several[-1], several[:2]) == ("yes", ["yes"], [["no", "yes"], []])
    assert (list(number), number.classes, len(number)) == ([1, -1, None], (), 3)


def test_class_names_and_their_order_come_from_the_dataset(monkeypatch):
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "contradiction"]),
        }
    )

    def split(labels):
        texts = [f"t{i}" for i in range(len(labels))]
        rows = {"premise": texts, "hypothesis": texts, "label": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    splits = datasets.DatasetDict(
        train=split([1, 0, 1]), validation=split([0, 1]), test=split([-1, -1])
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda path, configuration: splits)
    data = load("glue/rte")
    assert data.classes == ("entailment", "contradiction")
    assert data.train.labels == [1, 0, 1]
    assert data.train.pair == ["t0", "t1", "t2"]
    assert data.test is None


def test_unlabeled_test_split_is_left_out_unless_named(folder, caplog):
    hidden = [{"sentence": "x", "label": "-1"}]
    path = folder(train=labeled(8), validation=labeled(2, 8), test=hidden)
    with caplog.at_level(logging.WARNING):
        assert load(path).test is None
    assert "[test] has no labels and is ignored" in caplog.text
    with pytest.raises(DataError, match=r"\[test\] has no labels"):
        load(path, test="test")


def test_rows_are_held_out_where_there_is_no_validation_split(folder):
    data = load(folder(train=labeled(40), test=labeled(4, 40)), validation_share=0.25)
    assert (len(data.train), len(data.validation)) == (30, 10)


def test_unknown_split_is_refused_with_those_there_are(folder):
    with pytest.raises(DataError, match=r"no split 'tset'\. Did you mean 'test'"):
        load(folder(train=labeled(8), test=labeled(2)), test="tset")


def test_bad_row_is_told_with_split_and_row(folder):
    path = folder(train=[*labeled(3), {"sentence": None, "label": "good"}])
    with pytest.raises(DataError, match=r"\[train\]: row 4: the text is empty"):
        load(path)


def test_dataset_that_cannot_be_had_is_refused():
    with pytest.raises(DataError, match=r"'nobody/nothing'.*cannot be loaded"):
        load("nobody/nothing")


def test_damaged_file_is_told_with_the_reason(folder, tmp_path):
    path = folder(train=labeled(8))
    (tmp_path / "dataset" / "train-2.jsonl").write_text("{no json")
    with pytest.raises(DataError, match=r"cannot be loaded: JSON parse error"):
        load(path)


def test_dataset_must_be_named():
    with pytest.raises(ConfigError, match=r"task\.train is not set"):
        Hub(TaskConfig(name="hub")).check()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("imdb", ("imdb", None)),
        ("org/name", ("org/name", None)),
        ("org/name:part", ("org/name", "part")),
        ("glue/sst2", ("nyu-mll/glue", "sst2")),
        ("glue:sst2", ("nyu-mll/glue", "sst2")),
        ("super_glue/boolq", ("aps/super_glue", "boolq")),
    ],
)
def test_name_gives_path_and_configuration(name, address):
    assert _address(name) == address
