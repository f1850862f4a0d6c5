"""Files at the edges of their formats: each is read right, or refused with its place."""

from __future__ import annotations

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.data.files import Files
from gkd_core.data.readers import read
from gkd_core.errors import DataError
from gkd_core.plugins import registry

GRIN = "\U0001f600"
CUT = json.dumps(GRIN)[1:7]
"""The first half of an emoji, as JSON writes it."""


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def columns(path):
    table = read(path)
    table.faults.check()
    return {name: list(values) for name, values in table.columns.items()}


def load(train, **settings):
    return Files(TaskConfig(train=str(train), **settings), registry().kinds).load("masked-lm", 1)


def refused(path, **settings):
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value).replace(str(path), "FILE")


LONG = "word " * 40_000
UTF8 = "not UTF-8"
READ = {
    "long.csv": (f'text,label\n"{LONG}",1\n', [LONG]),
    "crlf.csv": ('text,label\r\n"one\r\ntwo",1\r\n', ["one\r\ntwo"]),
    "marked.csv": (b"\xef\xbb\xbftext,label\na,1\n", ["a"]),
    "marked.tsv": (b"\xef\xbb\xbftext\tlabel\na\t1\n", ["a"]),
    "marked.json": (b'\xef\xbb\xbf[{"text": "a", "label": 1}]', ["a"]),
    "emoji.jsonl": (json.dumps({"text": GRIN, "label": 1}), [GRIN]),
    "written-out.jsonl": ('{"text": "\\\\ud83d", "label": 1}', ["\\ud83d"]),
    "one-column.csv": ("text\ntext\n", ["text"]),
    "old-mac.txt": ("one\rtwo\rthree", ["one", "two", "three"]),
    "crlf.txt": ("one\r\n\r\ntwo\r\n", ["one", "two"]),
}


@pytest.mark.parametrize("name", READ)
def test_valid_file_is_read_as_its_format_says(tmp_path, name):
    content, texts = READ[name]
    assert columns(write(tmp_path / name, content))["text"] == texts


def test_long_fields_change_no_limit_of_the_process(tmp_path):
    before = csv.field_size_limit()
    columns(write(tmp_path / "a.csv", READ["long.csv"][0]))
    assert csv.field_size_limit() == before


ROW = '{"text": "a", "label": 1}\n'
REFUSED = {
    "half.jsonl": (
        f'{ROW}{{"text": "so {CUT}", "label": 1}}\n',
        "FILE:2: half of a character, \\ud83d at position 4 (column 'text')",
    ),
    "nested-half.jsonl": (
        f'{ROW}{{"text": "a", "more": {{"of": ["{CUT}"]}}}}\n',
        "FILE:2: half of a character, \\ud83d at position 1 (column 'more')",
    ),
    "half.json": (f'[{ROW}, {{"text": "{CUT}"}}]', "FILE: row 2: half of a character"),
    "twice.jsonl": ('{"text": "a", "text": "b"}', "FILE:1: the column 'text' is there twice"),
    "twice.json": ('[{"text": "a", "text": "b"}]', "FILE: row 1: the column 'text' is there"),
    "deep.jsonl": (f"{ROW}{'[' * 100_000}\n", "FILE:2: the JSON is nested too deeply"),
    "deep.json": ("[" * 100_000, "FILE: the JSON is nested too deeply"),
    "digits.jsonl": (f'{ROW}{{"text": {"1" * 5000}}}', "FILE:2: a number has too many digits"),
    "nan.jsonl": ('{"text": NaN, "label": 1}', "FILE:1: the text is empty (column 'text')"),
    "blank.csv": ("text,label\na,1\nb,2\nc, \n", "FILE:4: the row has no label (column 'label')"),
    "utf-16.csv": ("text,label\na,1\n".encode("utf-16"), f"FILE:1: {UTF8}: it begins with the"),
    "utf-16.jsonl": (ROW.encode("utf-16"), f"FILE:1: {UTF8}: it begins with the byte order"),
    "utf-32.json": (ROW.encode("utf-32"), f"FILE:1: {UTF8}: it begins with the byte order mark of"),
    "utf-16-le.csv": (
        "text,label\na,1\n".encode("utf-16-le"),
        "FILE:1: a zero byte at position 2, as in UTF-16; save the file as UTF-8",
    ),
    "zero.jsonl": (f"{ROW}\0\0\0\n", "FILE:2: a zero byte at position 1"),
    "header.csv": ("café,label\na,1\nb,2\n".encode("cp1252"), f"FILE:1: {UTF8}: byte 0xe9 at"),
    "first.jsonl": (
        '{"text": "a", "label": "café"}\n{"text": "b"}\n'.encode("cp1252"),
        f"FILE:1: {UTF8}: byte 0xe9 at position 28; save the file as UTF-8",
    ),
    "joined.csv": (
        "text,label\na,1\n\ufefftext,label\nb,2\n",
        "FILE:3: the names of the columns again",
    ),
    "joined.jsonl": (f"{ROW}\ufeff{ROW}", "FILE:2: invalid JSON: Unexpected UTF-8 BOM"),
    "cases.csv": ("text,Text,label\na,b,1\n", "several text columns, 'Text', 'text'"),
    "infinite.jsonl": (
        f'{ROW}{{"text": "b", "label": Infinity}}',
        "FILE:2: the label is inf; expected a finite number (column 'label')",
    ),
    "ragged.tsv": ("text\tlabel\na\t1\tx\n", "FILE:2: 3 fields, but the header has 2"),
    "ragged.conll": ("EU B-ORG\n# a comment\n", "FILE:2: 3 columns, but the first word has 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_file_is_refused_with_its_place(tmp_path, name):
    content, message = REFUSED[name]
    assert message in refused(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("kind", "settings", "row", "message"),
    [
        ("regression", {}, {"text": "a", "label": "1e999"}, "FILE:1: label '1e999' is too large"),
        (
            "embedding",
            {},
            {"sentence1": "a", "sentence2": "b", "score": float("nan")},
            "FILE:1: the score is nan, not a number (column 'score')",
        ),
        (
            "multiple-choice",
            {"text": "qestion"},
            {"question": "a", "choices": ["b", "c"], "label": 1},
            "FILE has no column 'qestion' (task.text). Did you mean 'question'?",
        ),
    ],
)
def test_row_of_a_kind_is_refused_with_its_place(tmp_path, kind, settings, row, message):
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    assert message in refused(path, kind=kind, validation=str(path), **settings)


def test_spaces_that_separate_no_columns_stay_in_the_word(tmp_path):
    path = write(tmp_path / "a.conll", "10\u00a0000 O\nEU\tB-ORG\n")
    assert columns(path) == {"tokens": [["10\u00a0000", "EU"]], "tags": [["O", "B-ORG"]]}


def parquet(path, table):
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_columns_of_every_type_are_read(tmp_path):
    table = pyarrow.table(
        {
            "text": pyarrow.array(["a", "b", "c"], pyarrow.large_string()),
            "label": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "nested": [{"part": [1]}, None, {"part": []}],
            "number": pyarrow.array([1, None, 3], pyarrow.int32()),
        }
    )
    # A folder such as this one would add the column `label` to a dataset.
    folder = tmp_path / "label=1"
    folder.mkdir()
    found = columns(parquet(folder / "a.parquet", table))
    assert (found["label"], found["number"]) == (["x", "y", "x"], [1, None, 3])
    assert found["nested"] == [{"part": [1]}, None, {"part": []}]
    assert load(folder / "a.parquet", validation=str(folder / "a.parquet")).classes == ("x", "y")


def test_parquet_text_that_is_no_string_is_refused_with_its_row(tmp_path):
    table = pyarrow.table({"text": [{"a": "b"}, None], "label": [0, 1]})
    message = refused(parquet(tmp_path / "a.parquet", table))
    assert "FILE: row 1: the text is {'a': 'b'}, not a string (column 'text')" in message
    assert "FILE: row 2: the text is empty" in message


def test_parquet_with_one_name_for_two_columns_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    message = refused(parquet(tmp_path / "a.parquet", table))
    assert "FILE: every column must have a unique name, got ['text', 'text']" in message


def test_parquet_text_that_is_not_utf8_is_refused_with_its_row(tmp_path):
    offsets = pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]))
    text = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"a\xff"))
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"text": text, "label": [0, 1]}))
    assert f"FILE: row 2: {UTF8}: byte 0xff at position 1 (column 'text')" in refused(path)


def test_tables_of_a_directory_that_are_not_read_are_named(tmp_path, caplog):
    for name in ("train.csv", "dev.csv", "dev_mismatched.csv", "notes.md"):
        write(tmp_path / name, "text,label\na,1\nb,2\n")
    load(tmp_path)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path} has other tables, which are not read: dev_mismatched.csv. Name the files with "
        "task.train, task.validation and task.test"
    ]
