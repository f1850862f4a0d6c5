"""Rows of large files on the disk: the same as those in memory, read once."""

import json
import math
import warnings

import numpy as np
import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split, TaskData
from gkd_core.data import array_spool, cache, json_rows, spooled_table, stored_rows
from gkd_core.data.array_spool import ArraySpool
from gkd_core.data.cache_limit import cache_items
from gkd_core.data.files import Files
from gkd_core.data.holdout import take
from gkd_core.data.readers import read
from gkd_core.data.stored_column import StoredColumn, write_column
from gkd_core.plugins import registry

VALUES = ["a", "", "é\0\n", None, 3, -7, 123456789012, 0.1, -0.0, True]
VALUES += [[1, ["x"]], (1, (2,)), {"a": [None]}]
"""One of each type that rows have."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A new cache, of which nothing has been said yet, for files of any size."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_rows, "LARGE", 0)
    cache._unwritable.clear()
    return tmp_path / "cache"


def test_values_come_back_as_they_were(tmp_path):
    known = write_column(tmp_path / "column", VALUES)
    column = StoredColumn.load(tmp_path / "column", known)
    assert list(column) == VALUES == [column[n] for n in range(len(column))]
    assert list(map(type, column)) == list(map(type, VALUES))
    assert math.copysign(1, column[8]) == -1
    assert (column[-1], column[1:3]) == (VALUES[-1], VALUES[1:3])
    rows = [4, 0, 4]
    assert list(column.take(rows)) == [3, "a", 3]
    assert list(column.take(rows).take([1, 2])) == ["a", 3]
    with pytest.raises(IndexError):
        column[len(VALUES)]


def test_hash_follows_values_and_their_order(tmp_path):
    hashes = [write_column(tmp_path / str(n), v) for n, v in enumerate((["ab", "c"], ["a", "bc"]))]
    assert hashes[0] != hashes[1]
    column = StoredColumn.load(tmp_path / "0", hashes[0])
    orders = [column.take(rows).content_hash for rows in ([0, 1], [1, 0], [0])]
    assert len({hashes[0], *orders}) == 4


def test_what_json_has_not_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a set cannot be stored"):
        write_column(tmp_path / "column", [{1}])


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def csv(path, rows):
    path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def json_list(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def paragraphs(path, rows):
    path.write_text("\n\n\n".join(f"{row['text']}\n{row['label']}" for row in rows))


def lines(path, rows):
    path.write_text("\n".join(row["text"] for row in rows))


WRITERS = {"jsonl": jsonl, "csv": csv, "parquet": parquet, "json": json_list}
TEXTS = {"paragraphs": paragraphs, "lines": lines}
ROWS = [{"text": f"text {n % 90}", "label": ("no", "yes")[n % 3 == 0]} for n in range(100)]


@pytest.mark.parametrize("form", [*WRITERS, *TEXTS])
def test_large_file_is_read_as_a_small_one_is(form, tmp_path, monkeypatch):
    path = tmp_path / f"rows.{form if form in WRITERS else 'txt'}"
    (WRITERS | TEXTS)[form](path, ROWS)
    small = read(path)
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 7)
    monkeypatch.setattr(json_rows, "BLOCK", 10)
    large = read(path)
    assert {type(column) for column in large.columns.values()} == {StoredColumn}
    assert {name: list(column) for name, column in large.columns.items()} == {
        name: list(column) for name, column in small.columns.items()
    }
    assert list(large.numbers) == list(small.numbers)


def test_column_that_comes_late_and_value_that_cannot_be_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 2)
    rows = spooled_table.TableBuilder(spooled_table.Faults("rows"))
    for number in range(1, 6):
        rows.add(number, {"a": number} | ({"late": {number}} if number > 3 else {}))
    columns = rows.table().columns
    assert list(columns["a"]) == [1, 2, 3, 4, 5]
    assert columns["late"] == [None, None, None, {4}, {5}]


def test_cache_that_cannot_be_written_keeps_rows_in_memory(folder, tmp_path, monkeypatch):
    folder.write_text("a file where the cache should be")
    jsonl(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 7)
    monkeypatch.setattr(array_spool, "IN_MEMORY", 8)
    with pytest.warns(UserWarning, match="cannot be used") as told:  # noqa: PT031  one warning
        table = read(tmp_path / "rows.jsonl")
        spool = ArraySpool(np.int64)
        spool.add(np.arange(5))
        spool.add(np.arange(5, 9))
        assert load(tmp_path / "rows.jsonl") == load(tmp_path / "rows.jsonl")
    assert list(table.columns["text"]) == [row["text"] for row in ROWS]
    assert spool.array().tolist() == list(range(9))
    assert len(told) == 1


def test_large_array_is_what_its_parts_were(folder, monkeypatch):
    monkeypatch.setattr(array_spool, "IN_MEMORY", 40)
    parts = [np.arange(6).reshape(3, 2), np.arange(20).reshape(10, 2), np.zeros((0, 2), np.int64)]
    spool = ArraySpool(np.int32)
    for part in parts:
        spool.add(part)
    found = spool.array()
    assert isinstance(found, np.memmap)
    assert found.dtype == np.int32
    assert np.array_equal(found, np.concatenate(parts))


def load(path, loads=None, seed=1):
    """Return the rows of a file as a run does, and note when they are read."""
    task = Files(TaskConfig(train=str(path)), registry().kinds)

    def read_rows():
        (loads if loads is not None else []).append(path)
        return task.load("masked-lm", seed)

    about, classes = [str(path), seed], [type(task)]
    return stored_rows.stored_rows(task.files(), about, classes, read_rows)


def same(one: TaskData, other: TaskData):
    assert (one.kind, one.classes, one.rows_hash) == (other.kind, other.classes, other.rows_hash)
    for split in ("train", "validation"):
        mine, theirs = getattr(one, split), getattr(other, split)
        assert [*mine.text] == [*theirs.text]
        assert [*mine.labels] == [*theirs.labels]
        assert (mine.pair, mine.chat) == (theirs.pair, theirs.chat)


def test_rows_are_read_once_until_something_changes(tmp_path):
    path, loads = tmp_path / "rows.jsonl", []
    jsonl(path, ROWS)
    fresh = Files(TaskConfig(train=str(path)), registry().kinds).load("masked-lm", 1)
    same(load(path, loads), fresh)
    same(load(path, loads), fresh)
    assert len(loads) == 1
    load(path, loads, seed=2)
    assert len(loads) == 2
    jsonl(path, [*ROWS, {"text": "one more", "label": "no"}])
    assert len(load(path, loads).train) + len(load(path, loads).validation) == 101
    assert len(loads) == 3
    assert {item.room for item in cache_items()} == {"rows"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "entry"])
def test_damaged_rows_are_named_set_aside_and_read_again(damage, folder, tmp_path):
    path, loads = tmp_path / "rows.jsonl", []
    jsonl(path, ROWS)
    fresh = Files(TaskConfig(train=str(path)), registry().kinds).load("masked-lm", 1)
    load(path, loads)
    entry = next((folder / "rows").glob("*/entry.json")).parent
    file = entry / "train-text"
    content = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(bytes([content[0], content[1] ^ 1, *content[2:]]))
    elif damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "missing":
        file.unlink()
    else:
        (entry / "entry.json").write_text("{")
    with pytest.warns(UserWarning, match="in the cache is damaged"):
        same(load(path, loads), fresh)
    assert len(loads) == 2
    assert list((folder / "rows").glob("*.damaged"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, loads)
    assert len(loads) == 2


def test_warning_of_the_first_reading_is_given_again(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train.jsonl", ROWS)
    jsonl(tmp_path / "data" / "other.jsonl", ROWS)
    for _ in range(2):
        caplog.clear()
        load(tmp_path / "data")
        assert "other.jsonl" in caplog.text


def test_split_hash_follows_every_column(tmp_path):
    known = write_column(tmp_path / "text", ["a", "b"])
    column = StoredColumn.load(tmp_path / "text", known)
    splits = [
        Split(column),
        Split(column.take([1, 0])),
        Split(column, labels=[0, 1]),
        Split(column, labels=[1, 0]),
        Split(column, pair=["0", "1"]),
        Split(column, byte_offsets=True),
        take(Split(column, labels=[0, 1]), [0]),
    ]
    assert len({stored_rows.split_hash(split) for split in splits}) == len(splits)
