"""Tokenized rows of every kind, kept on the disk: the same as those that are made."""

import dataclasses

import numpy as np
import pytest
from tests.core.kinds.conftest import MAKERS, WORDS

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data import stored_rows, stored_tokens
from gkd_core.data.files import Files
from gkd_core.data.pack import pack
from gkd_core.data.stored_tokens import tokenized
from gkd_core.kinds.causal_lm import CausalLM
from gkd_core.plugins import registry

KINDS = registry().kinds


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A new cache that keeps tokens of any number of rows."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_tokens, "MANY", 1)
    monkeypatch.setattr(stored_rows, "LARGE", 0)
    return tmp_path / "cache"


def same(one, other):
    """Assert that two values are equal, to the types of numbers and tuples."""
    if isinstance(other, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)
    elif isinstance(other, tuple | list):
        assert isinstance(one, tuple) == isinstance(other, tuple)
        assert list(one) == list(other)
    else:
        assert one == other


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_tokens_of_every_kind_are_kept(kind, task, tokenizer, monkeypatch):
    name = "multiple-choice" if kind == "choices" else kind
    config = TaskConfig(train=str(task(kind) / "validation.jsonl"), kind=name)
    data = Files(config, KINDS).load(name, 1)
    chosen = KINDS[data.kind]
    fresh = chosen.encode(data.train, tokenizer, 32, data.classes)
    tokenized(chosen, data.train, tokenizer, 32, data.classes)
    monkeypatch.setattr(type(chosen), "encode", None)  # nothing is tokenized again
    kept = tokenized(chosen, data.train, tokenizer, 32, data.classes)
    for field in dataclasses.fields(fresh):
        if field.name != "extra":
            same(getattr(kept, field.name), getattr(fresh, field.name))
    assert kept.extra.keys() == fresh.extra.keys()
    for key, value in fresh.extra.items():
        same(kept.extra[key], value)


@pytest.mark.parametrize("whole", [True, False])
def test_packed_rows_are_kept_in_their_blocks(tokenizer, monkeypatch, whole):
    texts = [" ".join(WORDS[: 1 + number % 5]) for number in range(12)]
    split = Split(texts, target=texts if whole else None)
    given = (KINDS["causal-lm"], split, tokenizer, 16, ())
    plain = tokenized(*given)
    made = tokenized(*given, packed=True)
    monkeypatch.setattr(CausalLM, "encode", None)  # nothing is tokenized again
    monkeypatch.setattr(stored_tokens, "pack", None)  # nor packed
    kept = tokenized(*given, packed=True)
    assert kept.num_packed == len(plain) > len(kept)
    fresh = pack(plain, 16, whole)
    for field in dataclasses.fields(kept):
        same(getattr(kept, field.name), getattr(fresh, field.name))
        same(getattr(made, field.name), getattr(fresh, field.name))
