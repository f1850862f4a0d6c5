"""Benchmarks in their original layouts: small rows, made by hand."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from gkd_core.config.schema import TaskConfig
from gkd_core.plugins import registry

SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


@pytest.fixture
def folder(tmp_path):
    """Write files: `folder(**{"train.jsonl": rows})` -> directory; a text is written as it is."""

    def _folder(**files):
        directory = tmp_path / "files"
        directory.mkdir(exist_ok=True)
        for name, rows in files.items():
            text = rows
            if not isinstance(rows, str):
                text = "".join(json.dumps(row) + "\n" for row in rows)
            (directory / name).write_text(text, encoding="utf-8")
        return directory

    return _folder


@pytest.fixture
def load():
    """Read a task: `load("superglue/cb", directory, kind=...)` -> TaskData."""

    def _load(name, train, seed=1, **settings):
        config = TaskConfig(name=name, train=None if train is None else str(train), **settings)
        task = registry().task(name)(config, registry().kinds)
        task.check()
        return task.load("masked-lm", seed)

    return _load


@pytest.fixture
def start(world, tmp_path):
    """The directory of an untrained encoder, from which a student of any kind of task starts."""
    settings = json.loads((world / "teacher" / "config.json").read_text())
    shape = {name: settings[name] for name in SHAPE} | {"max_position_embeddings": 64}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path / "start")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "teacher" / file, tmp_path / "start")
    return tmp_path / "start"
