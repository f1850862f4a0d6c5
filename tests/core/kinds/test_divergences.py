"""The divergence of two models whose distributions are not kept, against plain models."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from transformers import AutoModelForQuestionAnswering, AutoTokenizer


@pytest.fixture
def models(task, tmp_path):
    """Two models that find answers, and the folder with their rows."""
    folder = task("span-extraction")
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "untrained")
    config = AutoModelForQuestionAnswering.from_pretrained(folder / "untrained").config
    config.initializer_range = 0.5
    for name in ("one", "other"):
        AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "one", tmp_path / "other", folder / "test.jsonl"


@pytest.mark.exhaustive
def test_answers_diverge_as_plain_models_do(models, invoke, tmp_path):
    own, other, rows = models
    flags = ["--data", rows, "--set", "task.max_length=24", "--output", tmp_path / "said", "--json"]
    done = invoke("eval", own, "--against", other, *flags)
    assert done.code == 0, done.err
    expected = _divergences(own, other, rows)
    assert json.loads(done.out)["against"]["kl"] == pytest.approx(
        sum(expected) / len(expected), rel=1e-4
    )
    kept = {name: pq.read_table(tmp_path / "said" / f"{name}.parquet") for name in ("one", "other")}
    assert kept["one"]["kl"].to_pylist() == pytest.approx(expected, rel=1e-3)
    assert set(kept["other"]["kl"].to_pylist()) == {0}


def _divergences(own, other, rows):
    """Return the mean of KL(other || own) over starts and ends in all windows of each row."""
    tokenizer = AutoTokenizer.from_pretrained(own)
    models = [AutoModelForQuestionAnswering.from_pretrained(each).eval() for each in (own, other)]
    found, several = [], False
    for row in map(json.loads, rows.read_text().splitlines()):
        cut = {"truncation": "only_second", "max_length": 24, "stride": 8}
        read = tokenizer(row["question"], row["context"], return_overflowing_tokens=True, **cut)
        several |= len(read["input_ids"]) > 1
        apart = []
        for ids in read["input_ids"]:
            inputs = {"input_ids": torch.tensor([ids])}
            with torch.no_grad():
                mine, theirs = (model(**inputs) for model in models)
            for logits in ("start_logits", "end_logits"):
                q, p = (softmax(each[logits][0].double().numpy()) for each in (mine, theirs))
                apart.append(entropy(p, q))
        found.append(sum(apart) / len(apart))
    assert several, "some rows have several windows"
    return found
