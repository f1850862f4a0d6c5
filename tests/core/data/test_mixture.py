"""Rows from several sources with their shares."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from gkd_core.config.schema import TaskConfig, data_shares, task_name
from gkd_core.data import mixture, spooled_table
from gkd_core.data.mixture import MixedData, short_names
from gkd_core.data.stored_column import StoredColumn
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """`many.jsonl` with 100 conversations, `few.jsonl` with 40 prompts with responses, a text."""
    folder = tmp_path_factory.mktemp("sources")
    talks = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
        for n in range(100)
    ]
    tables = {
        "many.jsonl": [{"messages": one} for one in talks],
        "few.jsonl": [{"prompt": f"p{n}", "response": f"r{n}"} for n in range(40)],
    }
    for name, rows in tables.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plain.txt").write_text("".join(f"line {n}\n" for n in range(20)))
    return folder


def load(train, **settings):
    config = TaskConfig(train=train, kind="causal-lm", **settings)
    task = registry().task(task_name(config))(config, registry().kinds)
    task.check()
    return task.load("causal-lm", 1)


def test_rows_have_the_given_shares_and_none_is_repeated(sources):
    data = load(f"{sources / 'many.jsonl'}:0.25,{sources / 'few.jsonl'}:0.75")
    assert Counter(data.train.source) == {"few": 36, "many": 12}  # a tenth is held out
    assert Counter(data.validation.source) == {"few": 4, "many": 10}
    assert len({json.dumps(text) for text in data.train.text}) == 48
    assert data.train.chat
    assert data.train.target is None
    assert all(text[-1]["role"] == "assistant" for text in data.train.text)
    assert "many.jsonl (12 of 90 rows)" in data.source


def test_a_mixture_of_rows_on_the_disk_has_the_same_rows(sources, monkeypatch, tmp_path):
    train = f"{sources / 'many.jsonl'}:0.25,{sources / 'few.jsonl'}:0.75"
    data = load(train)
    monkeypatch.setenv("GKD_CACHE", str(tmp_path))
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 7)
    monkeypatch.setattr(mixture, "CHUNK", 5)
    stored = load(train)
    assert isinstance(stored.train.text, StoredColumn)
    assert list(stored.train.text) == data.train.text
    assert stored.validation == data.validation
    assert stored.rows_hash == data.rows_hash


def test_columns_are_joined_on_the_disk_if_one_of_them_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path))
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 3)
    column = spooled_table.spooled(map(str, range(7)))
    assert isinstance(column, StoredColumn)
    both = [column.take([6, 0, 2]), ["a", None, "c", {"d": (1,)}]]
    found = spooled_table.joined(both)
    assert isinstance(found, StoredColumn)
    assert list(found) == ["6", "0", "2", "a", None, "c", {"d": (1,)}]
    beyond = {"a set"}  # no file of the cache can hold it
    assert spooled_table.joined([*both, [beyond, "e"]]) == [*found, beyond, "e"]


def test_sources_are_named_by_their_files(sources):
    assert short_names(["x/a.jsonl", "y/b"]) == ["a", "b"]
    assert short_names(["x/a.jsonl", "y/a.jsonl"]) == ["x/a.jsonl", "y/a.jsonl"]
    assert data_shares("a:1,b:3") == {"a": 0.25, "b": 0.75}
    assert data_shares("glue:2") == data_shares("a,b") == data_shares(None) == {}


def test_sources_that_cannot_be_mixed_are_refused(sources):
    plain, chats = sources / "plain.txt", sources / "many.jsonl"
    with pytest.raises(DataError, match=r"some of plain, many are conversations, and others plain"):
        load(f"{plain}:1,{chats}:1")
    with pytest.raises(ConfigError, match=r"task\.name = 'superglue/rte' does not read"):
        MixedData(TaskConfig(train="a:1,b:1", name="superglue/rte")).check()
    with pytest.raises(DataError, match=r"missing.jsonl \(task.train\) does not exist"):
        load(f"{plain}:1,{sources / 'missing.jsonl'}:1")


def test_the_context_of_each_row_follows_it_and_no_source_may_lack_it(tmp_path):
    for name in ("a", "b"):
        rows = [
            {"prompt": f"{name}{n}", "response": "x", "hint": f"for {name}{n}"} for n in range(40)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = f"{tmp_path / 'a.jsonl'}:0.7,{tmp_path / 'b.jsonl'}:0.3"
    data = load(train, context="hint")
    assert Counter(data.train.source) == {"a": 36, "b": 15}  # a tenth of each is held out
    assert data.train.context == [f"for {text}" for text in data.train.text]
    assert data.validation.context == [f"for {text}" for text in data.validation.text]

    rows = [json.dumps({"prompt": f"b{n}", "response": "x"}) for n in range(40)]
    (tmp_path / "b.jsonl").write_text("\n".join(rows))
    with pytest.raises(
        DataError, match=r"b\.jsonl has no column 'hint' \(task\.context\)\. The col"
    ):
        load(train, context="hint")


def test_several_data_flags_are_mixed_and_reported_by_source(invoke, world, tmp_path):
    """Classification, too: accuracy is told for each source."""
    part = tmp_path / "second.jsonl"
    part.write_text((world / "train.jsonl").read_text())
    brief = ["--set", "training.steps=1", "--set", "task.max_length=32", "--no-baseline"]
    data = ["--data", f"{world / 'train.jsonl'}:0.5", "--data", f"{part}:1.5"]
    done = invoke(
        "run", "--teacher", world / "teacher", "--student-layers", "2", "--method", "soft",
        *data, *brief, "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "train.jsonl (29 of 86 rows)" in " ".join(done.out.split())
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (found,) = (line for line in lines if "validation/accuracy" in line)
    both = [found[f"validation/accuracy.{name}"] for name in ("train", "second")]
    assert found["validation/accuracy"] == pytest.approx(sum(both) / 2)
