"""Prompts and loss masks of batches, and rows that are put together again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.rollouts.rows import RowText, RowWriter, prompts_of, split_prompts
from gkd_core.testing import tiny_batch

PAD = 0


def _batch(rows, left=False, **fields):
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[line, place], mask[line, place] = torch.tensor(row), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Batch(inputs, None, torch.arange(len(rows)), **fields)


def _rows(tensor, mask):
    """Return what a mask selects of each row."""
    return [row[own].tolist() for row, own in zip(tensor, mask, strict=True)]


def test_without_a_loss_mask_every_token_counts_and_there_is_no_prompt():
    batch = replace(tiny_batch("causal-lm"), sources=None)
    assert torch.equal(batch.tokens.mask, batch.mask)
    assert not batch.prompt_mask.any()
    assert batch.written_by("data").all()
    assert not batch.written_by("student").any()


@pytest.mark.parametrize("left", [False, True])
def test_losses_count_what_follows_the_prompt(left):
    split = split_prompts(_batch([[5, 6, 7, 8, 9], [5, 6], [5, 6, 7]], left), 2)
    assert [row.tolist() for row in prompts_of(split)] == [[5, 6], [5], [5, 6]]
    counted = _rows(split.inputs["input_ids"], split.tokens.mask)
    assert counted == [[7, 8, 9], [6], [7]]
    assert _rows(split.labels, split.targets.mask) == counted
    before = split.inputs["input_ids"][split.targets.mask].tolist()
    assert before == [6, 7, 8, 5, 6], "a token is predicted at the position before it"
    assert torch.equal(split.prompt_mask | split.tokens.mask, split.mask)


def test_a_loss_mask_of_the_data_is_kept():
    mask = torch.tensor([[False, False, False, True]])
    batch = _batch([[5, 6, 7, 8]], loss_mask=mask)
    assert split_prompts(batch, 1) is batch
    assert [row.tolist() for row in prompts_of(batch)] == [[5, 6, 7]]


def test_moving_a_batch_keeps_its_masks_and_sources():
    batch = split_prompts(tiny_batch("causal-lm"), 3)
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.loss_mask, batch.loss_mask)
    assert moved.tokens.count == batch.tokens.count < batch.mask.sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_written_rows_are_put_where_others_were(world, side):
    tokenizer = AutoTokenizer.from_pretrained(world / "lm-decoder", padding_side=side)
    rows = RowWriter(tokenizer, PAD)
    batch = split_prompts(_batch([[5, 6, 7], [5, 6, 7, 8, 9, 10]], side == "left"), 2)
    texts = {1: RowText(torch.tensor([5, 6]), torch.tensor([11, 12]))}
    width = rows.width(batch, texts)
    assert width == 4
    found = rows.replace(batch, texts, ["data", "teacher"], width + 1)
    assert _rows(found.inputs["input_ids"], found.mask) == [[5, 6, 7], [5, 6, 11, 12]]
    assert _rows(found.labels, found.targets.mask) == [[7], [11, 12]]
    assert found.written_by("teacher").tolist() == [False, True]
    assert found.mask.shape == found.words.shape == (2, 5)
    padding = found.inputs["input_ids"][~found.mask]
    assert (padding == PAD).all()
    assert (found.labels[~found.targets.mask] == IGNORE).all()
    assert found.words[1][found.mask[1]].tolist() == [0, 1, 2, 3]


def test_a_row_without_new_tokens_has_no_targets(world):
    rows = RowWriter(AutoTokenizer.from_pretrained(world / "lm-decoder"), PAD)
    batch = split_prompts(_batch([[5, 6, 7]]), 2)
    nothing = torch.tensor([], dtype=torch.int64)
    found = rows.replace(batch, {0: RowText(torch.tensor([5, 6]), nothing)}, ["student"], 2)
    assert found.counts() == {"sample": 1, "token": 0, "target": 0}
