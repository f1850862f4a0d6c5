"""A target text beside the text: what a causal language model is to write after it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkd_core.contract.batch import IGNORE
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry

CAUSAL = registry().kind("causal-lm")


@pytest.fixture
def tokenizer(world):
    """Puts [CLS] before and [SEP] after a text; [SEP] is also the end token."""
    found = AutoTokenizer.from_pretrained(world / "lm-decoder")
    found.eos_token = "[SEP]"
    return found


def rows(encoded):
    return [encoded.row(index)["input_ids"].tolist() for index in range(len(encoded))]


def test_a_row_is_the_text_its_target_and_the_end(tokenizer):
    words = tokenizer.convert_tokens_to_ids
    texts, targets = ["good film", "bad"], ["good", "bad film bad"]
    encoded = CAUSAL.encode(Split(texts, target=targets), tokenizer, 16)
    assert rows(encoded) == [
        words(["[CLS]", *text.split(), *target.split(), "[SEP]"])
        for text, target in zip(texts, targets, strict=True)
    ]
    assert encoded.prompts.tolist() == [3, 2]
    batch = Collator(tokenizer, CAUSAL, 0.15, 1).collate(encoded, [1, 0], 0)
    assert batch.labels.tolist() == [
        [IGNORE, *words(["bad", "film", "bad", "[SEP]"]), IGNORE],
        [IGNORE, IGNORE, *words(["good", "[SEP]"]), IGNORE, IGNORE],
    ]
    assert batch.targets.count == batch.tokens.count == 6
    assert batch.prompt_mask.sum(1).tolist() == [2, 3]


def test_a_long_row_loses_the_beginning_of_its_text_first(tokenizer):
    words = tokenizer.convert_tokens_to_ids
    split = Split(["a good bad film"] * 2, target=["good bad", "good bad good bad good"])
    encoded = CAUSAL.encode(split, tokenizer, 5)
    assert rows(encoded)[0] == words(["bad", "film", "good", "bad", "[SEP]"])
    assert rows(encoded)[1] == words(["film", "good", "bad", "good", "bad"])
    assert encoded.prompts.tolist() == [2, 1]
    assert encoded.num_truncated == 2


def test_only_the_target_is_learned(prepare_run, world, tmp_path):
    """The validation loss is the mean over the tokens of the targets."""
    table = map(json.loads, (world / "validation.jsonl").read_text().splitlines())
    path = tmp_path / "told.jsonl"
    answers = {"pos": "good", "neg": "bad bad"}
    lines = [{"text": row["text"], "answer": answers[row["label"]]} for row in table]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [f"task.{split}={path}" for split in ("train", "validation", "test")]
    run = prepare_run(
        "method=soft+hard",
        "task.kind=causal-lm",
        "task.target=answer",
        *given,
        "training.steps=2",
        "training.evaluate_every=2",
        teachers=("lm-decoder",),
    )
    run.execute()
    (logged,) = (
        entry["validation/loss"]
        for entry in map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
        if "validation/loss" in entry
    )
    model = AutoModelForCausalLM.from_pretrained(run.student).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    losses = []
    for line in lines:
        prompt = tokenizer(line["text"])["input_ids"]
        answer = tokenizer(line["answer"], add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = torch.tensor([*prompt, *answer, *end])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(prompt) - 1 : -1]
        losses.append(functional.cross_entropy(logits, ids[len(prompt) :], reduction="none"))
    assert logged == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["masked-lm", "classification"])
def test_a_target_is_refused_where_nothing_is_written(prepare_run, world, kind):
    with pytest.raises(
        ConfigError, match=rf"task\.target = 'label' is a text .* which {kind} does"
    ):
        prepare_run(f"task.kind={kind}", "task.target=label", "method=hard")
