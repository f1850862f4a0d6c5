"""Decoding with a key-value cache writes what transformers' own `generate` writes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from gkd_core.contract.rollout import Prompts
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.losses import LinearLogits
from gkd_core.models.sites import find_sites
from gkd_core.rollouts.writer import Writer

NEW = 7
FAMILIES = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "qwen3", "glm", "glm4", "mistral", "bloom"]
ENCODERS = ["roberta"]
"""Families that are decoders if their configuration says so."""


def _prompts(typed=False):
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(4, 100, (size,), generator=generator) for size in (3, 9, 1)]
    return Prompts(rows, NEW, (), pad_id=1, seeds=[0, 1, 2], typed=typed)


def _generated(model, prompt):
    ids = prompt.unsqueeze(0)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
    )
    return found[0, len(prompt) :].tolist()


def _continued(model, prompt):
    """The likeliest tokens, one pass for each: `generate` counts positions of RoBERTa from 0."""
    text = prompt
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=text.unsqueeze(0), use_cache=False).logits
            text = torch.cat([text, logits[0, -1:].argmax(-1)])
    return text[len(prompt) :].tolist()


@pytest.fixture
def writer(build_model):
    """Build what writes with a family's model in fp64, and the model's hooks."""

    def _writer(family):
        changes = {"is_decoder": True} if family in ENCODERS else {}
        model = build_model(family, "causal-lm", **changes)
        if family != "bloom":  # transformers' mask of padding on the left is NaN there in fp64
            model.double()
        extractor = Extractor(model, find_sites(model))
        return Writer("student", extractor, torch.device("cpu"), nullcontext), extractor

    return _writer


@pytest.mark.parametrize("family", FAMILIES + ENCODERS)
def test_rows_of_different_length_are_written_as_each_alone(plugin, writer, family):
    (engine,) = plugin("greedy").gkd_register_rollouts()
    writing, extractor = writer(family)
    with writing.writing(0):
        found = engine().write(_prompts(), writing).tokens
    write = _continued if family in ENCODERS else _generated
    expected = [write(extractor.model, row) for row in _prompts().rows]
    assert [list(text) for text in found] == expected


def test_a_model_whose_attention_was_captured_writes_the_same(plugin, writer):
    (engine,) = plugin("greedy").gkd_register_rollouts()
    writing, extractor = writer("llama")
    prompts = _prompts()
    with writing.writing(0):
        expected = engine().write(prompts, writing).tokens
        extractor.run(frozenset({Capture("query", 1), Capture("hidden", 2)}), prompts.padded())
        assert engine().write(prompts, writing).tokens == expected


def test_only_the_last_position_gets_logits(writer):
    writing, _ = writer("llama")
    with writing.writing(0):
        decoding = writing.start(_prompts())
    assert isinstance(decoding.logits, LinearLogits)
    assert decoding.logits.shape == (3, 100)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_either_side(side):
    prompts = _prompts(typed=True)
    inputs = prompts.padded(side)
    assert inputs.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert inputs["attention_mask"].sum(1).tolist() == [3, 9, 1]
    for line, row in enumerate(prompts.rows):
        place = slice(9 - len(row), 9) if side == "left" else slice(len(row))
        assert torch.equal(inputs["input_ids"][line, place], row)
        assert (inputs["input_ids"][line][inputs["attention_mask"][line] == 0] == 1).all()
