"""Rows of large files take little memory, however many they are."""

import json
import tracemalloc

import datasets
import pytest
from tests.core.data.test_chats import make_tokenizer
from tests.core.data.test_encode import tokenizer

from gkd_core import digest
from gkd_core.config.schema import TaskConfig
from gkd_core.data import (
    array_spool,
    assemble,
    encode,
    encode_chats,
    hub_column,
    json_rows,
    mapped_memory,
    mixture,
    pack,
    spooled_table,
    stored_column,
    stored_rows,
)
from gkd_core.data import stored_tokens as tokens
from gkd_core.data.files import Files
from gkd_core.data.hub import Hub
from gkd_core.data.mixture import MixedData
from gkd_core.data.sampler import Sampler
from gkd_core.plugins import registry

LONG = "a text that is so long that nobody could keep it in memory without being noticed " * 4

SOME, *ROWS = (100, 200, 600)

MOST = 160
"""Bytes for each row while rows are read: numbers such as its line, label, length and place."""


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch):
    """Parts so small that few rows are many parts."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "BLOCK", 2**12)
    monkeypatch.setattr(stored_rows, "LARGE", 0)
    monkeypatch.setattr(tokens, "MANY", 0)
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 20)
    monkeypatch.setattr(stored_column, "CHUNK", 20)
    monkeypatch.setattr(array_spool, "IN_MEMORY", 2**11)
    monkeypatch.setattr(json_rows, "BLOCK", 2**12)
    monkeypatch.setattr(assemble, "CHUNK", 20)
    monkeypatch.setattr(encode, "CHUNK", 20)
    monkeypatch.setattr(encode_chats, "CHUNK", 20)
    monkeypatch.setattr(pack, "CHUNK", 20)
    monkeypatch.setattr(mixture, "CHUNK", 20)
    monkeypatch.setattr(mapped_memory, "PART", 2**11)


def peaks_of(task, kind, packed=False):
    """Return the most bytes that are taken at once as rows are read, and until they are drawn."""
    task.files()
    words = make_tokenizer() if kind == "causal-lm" else tokenizer()
    tracemalloc.start()
    data = stored_rows.stored_rows(task.files(), [], [], lambda: task.load(kind, 1))
    assert data.kind == kind
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    given = (registry().kinds[kind], data.train, words, 64, data.classes)
    encoded = tokens.tokenized(*given, packed=packed)
    assert encoded.largest_id > 0
    assert (encoded.positions is not None) == packed
    assert encoded.prompts is None or len(encoded.prompts) == len(encoded)
    next(Sampler(encoded.lengths, 8, 1, 0, bucketing=True).steps(0))
    drawing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return reading, drawing


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def labeled(number):
    return {"text": f"{LONG} {number}", "label": ("no", "yes")[number % 2]}


def answered(number):
    return {"prompt": f"{number}?", "response": f"{number} {LONG}"}


def conversation(number):
    said = (f"{number}?", f"{number} {LONG}")
    roles = ("user", "assistant")
    return {"messages": [{"role": r, "content": s} for r, s in zip(roles, said, strict=True)]}


FILES = {
    "labeled": ("jsonl", "classification", labeled, lines),
    "list": ("json", "classification", labeled, json.dumps),
    "prompts": ("jsonl", "causal-lm", answered, lines),
    "messages": ("json", "causal-lm", conversation, json.dumps),
    "text": ("txt", "masked-lm", labeled, lambda rows: "\n\n".join(row["text"] for row in rows)),
}


@pytest.mark.parametrize("name", FILES)
def test_memory_of_a_row_is_less_than_its_text(name, tmp_path):
    suffix, kind, row, written = FILES[name]
    peaks = []
    for count in (SOME, *ROWS):  # the first takes what is taken once, such as by imports
        path = tmp_path / f"{count}.{suffix}"
        path.write_text(written([row(number) for number in range(count)]))
        peaks.append(peaks_of(Files(TaskConfig(train=str(path)), registry().kinds), kind))
    check_growth(peaks)


def check_growth(peaks):
    for few, many in zip(*peaks[1:], strict=True):
        assert (many - few) / (ROWS[1] - ROWS[0]) < MOST


@pytest.mark.parametrize("name", ["messages", "text"])
def test_memory_of_a_packed_row_is_less_than_its_text(name, tmp_path):
    suffix, _, row, written = FILES[name]
    peaks = []
    for count in (SOME, *ROWS):
        path = tmp_path / f"{count}.{suffix}"
        path.write_text(written([row(number) for number in range(count)]))
        config = TaskConfig(train=str(path), kind="causal-lm")
        peaks.append(peaks_of(Files(config, registry().kinds), "causal-lm", packed=True))
    check_growth(peaks)


def test_memory_of_a_context_is_less_than_its_text(tmp_path):
    peaks = []
    for count in (SOME, *ROWS):
        path = tmp_path / f"{count}.jsonl"
        path.write_text(lines([{**answered(n), "hint": f"{LONG * 4} {n}"} for n in range(count)]))
        config = TaskConfig(train=str(path), context="hint")
        peaks.append(peaks_of(Files(config, registry().kinds), "causal-lm"))
    check_growth(peaks)


def test_memory_of_a_row_of_a_mixture_is_less_than_its_text(tmp_path):
    peaks = []
    for count in (SOME, *ROWS):
        for name, row in (("prompts", answered), ("messages", conversation)):
            path = tmp_path / f"{name}.jsonl"
            path.write_text(lines([row(number) for number in range(count // 2)]))
        train = f"{tmp_path / 'prompts.jsonl'}:1,{tmp_path / 'messages.jsonl'}:1"
        peaks.append(peaks_of(MixedData(TaskConfig(train=train), registry().kinds), "causal-lm"))
    check_growth(peaks)


def test_memory_of_a_row_of_the_hub_is_less_than_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(hub_column, "PART", 20)
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    peaks = []
    for count in (SOME, *ROWS):
        rows = datasets.Dataset.from_list(list(map(labeled, range(count))), features=features)
        rows.to_parquet(tmp_path / str(count) / "train.parquet")
        task = Hub(TaskConfig(name="hub", train=str(tmp_path / str(count))), registry().kinds)
        peaks.append(peaks_of(task, "classification"))
    check_growth(peaks)
