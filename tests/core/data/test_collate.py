from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gkd_core.contract.batch import IGNORE
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.loader import evaluation_batches, iterate
from gkd_core.data.sampler import Sampler
from gkd_core.errors import DataError
from gkd_core.plugins import registry

KINDS = registry().kinds

PAD, END, CLS, SEP, MASK = range(5)
VOCABULARY = 1000


def tokenizer(side="right", **missing):
    names = ["[PAD]", "[END]", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"w{i}" for i in range(len(names), VOCABULARY)]
    special = {
        "pad_token": "[PAD]",
        "eos_token": "[END]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        **missing,
    }
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **special)


def encoded_rows(*rows, labels=None, type_ids=None):
    flat = np.concatenate([np.array(row, np.int32) for row in rows])
    offsets = np.cumsum([0, *map(len, rows)])
    return Encoded(flat, type_ids, offsets, labels, 0)


def random_rows(count, seed=0):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 40, size=count)
    return encoded_rows(*([CLS, *draw.integers(5, VOCABULARY, size=n), SEP] for n in lengths))


def masked(batch, row):
    """Tokens and labels of a row of the data set, without padding."""
    line = batch.rows.tolist().index(row)
    real = batch.mask[line]
    return batch.inputs["input_ids"][line][real].tolist(), batch.labels[line][real].tolist()


def test_rows_are_padded_to_the_longest_of_the_batch():
    labels, types = np.array([1, 0, 2]), np.array([0, 0, 1, 0, 0, 0], np.int32)
    encoded = encoded_rows([7, 8, 9], [6], [5, 5], labels=labels, type_ids=types)
    batch = Collator(tokenizer(), KINDS["classification"], 0.15, 1).collate(encoded, [1, 0], 0)
    assert batch.inputs["input_ids"].tolist() == [[6, PAD, PAD], [7, 8, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert {value.dtype for value in batch.inputs.values()} == {torch.int64}
    assert batch.labels.tolist() == [0, 1]
    assert batch.rows.tolist() == [1, 0]


def test_padding_follows_the_side_of_the_tokenizer():
    collator = Collator(tokenizer(side="left"), KINDS["causal-lm"], 0.15, 1)
    batch = collator.collate(encoded_rows([7, 8, 9], [6, 5]), [0, 1], 0)
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 9], [PAD, 6, 5]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch.labels.tolist() == [[8, 9, IGNORE], [IGNORE, 5, IGNORE]]


def test_labels_of_a_causal_lm_are_the_next_tokens():
    batch = Collator(tokenizer(pad_token=None), KINDS["causal-lm"], 0.15, 1).collate(
        encoded_rows([7, END, 9, END], [6, 5]), [0, 1], 0
    )
    assert batch.labels.tolist() == [[END, 9, END, IGNORE], [5, IGNORE, IGNORE, IGNORE]]
    assert batch.targets.count == 4


def test_end_token_pads_where_there_is_no_padding_token():
    collator = Collator(tokenizer(pad_token=None), KINDS["classification"], 0.15, 1)
    batch = collator.collate(encoded_rows([7, 8], [6]), [0, 1], 0)
    assert collator.pad_id == END
    assert batch.inputs["input_ids"].tolist() == [[7, 8], [6, END]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.labels is None


def test_missing_tokens_are_refused():
    with pytest.raises(DataError, match="neither a padding token nor an end token"):
        Collator(tokenizer(pad_token=None, eos_token=None), KINDS["causal-lm"], 0.15, 1)
    with pytest.raises(DataError, match="no mask token"):
        Collator(tokenizer(mask_token=None), KINDS["masked-lm"], 0.15, 1)


def test_masks_do_not_depend_on_the_rest_of_the_batch():
    encoded = random_rows(12)
    collator = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1)
    whole = collator.collate(encoded, range(12), 3)
    for rows in ([4], [11, 4, 0], [4, 5]):
        assert masked(collator.collate(encoded, rows, 3), 4) == masked(whole, 4)
    left = Collator(tokenizer(side="left"), KINDS["masked-lm"], 0.15, 1)
    assert masked(left.collate(encoded, range(12), 3), 4) == masked(whole, 4)


def test_masks_change_with_epoch_seed_and_row():
    encoded = encoded_rows(*[[CLS, *range(10, 40), SEP]] * 2)
    collator = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1)
    first = masked(collator.collate(encoded, [0], 0), 0)
    assert first != masked(collator.collate(encoded, [0], 1), 0)
    assert first != masked(collator.collate(encoded, [1], 0), 1)
    assert first != masked(
        Collator(tokenizer(), KINDS["masked-lm"], 0.15, 2).collate(encoded, [0], 0), 0
    )


def test_masked_shares_are_80_10_10():
    size, share = 20_000, 0.2
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, size=size)
    encoded = encoded_rows([CLS, *tokens, SEP])
    batch = Collator(tokenizer(), KINDS["masked-lm"], share, 1).collate(encoded, [0], 0)
    ids, labels = batch.inputs["input_ids"][0], batch.labels[0]
    original = torch.tensor([CLS, *tokens, SEP])
    chosen = labels != IGNORE
    assert batch.targets.count == share * size
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(ids[~chosen], original[~chosen])
    assert (ids[chosen] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (ids[chosen] == labels[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_special_tokens_are_never_masked_and_short_rows_have_a_target():
    encoded = encoded_rows(*[[CLS, 7, SEP]] * 50, [CLS, SEP])
    batch = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1).collate(encoded, range(51), 0)
    assert batch.labels[:50].tolist() == [[IGNORE, 7, IGNORE]] * 50
    assert batch.labels[50].tolist() == [IGNORE] * 3
    assert set(batch.inputs["input_ids"][:, 0].tolist()) == {CLS}


def as_lists(steps):
    def values(batch):
        return [part.tolist() for part in (*batch.inputs.values(), batch.labels, batch.rows)]

    return [(epoch, [values(batch) for batch in batches]) for epoch, batches in steps]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 19])
def test_iteration_resumes_as_if_never_interrupted(start):
    encoded = random_rows(30)
    collator = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1)
    sampler = Sampler(encoded.lengths, 4, 2, 1, True)
    whole = as_lists(iterate(encoded, collator, sampler, 0, 20))
    assert as_lists(iterate(encoded, collator, sampler, start, 20)) == whole[start:]
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8 + [2] * 4


def test_accumulation_changes_neither_rows_nor_masks():
    encoded = random_rows(30)
    collator = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1)

    def steps(accumulation):
        sampler = Sampler(encoded.lengths, 6, accumulation, 1, True)
        for _, batches in iterate(encoded, collator, sampler, 0, 7):
            yield {row: masked(batch, row) for batch in batches for row in batch.rows.tolist()}

    assert list(steps(1)) == list(steps(3))


def test_evaluation_sees_every_row_once_longest_first_with_fixed_masks():
    encoded = random_rows(30)
    collator = Collator(tokenizer(), KINDS["masked-lm"], 0.15, 1)
    batches = list(evaluation_batches(encoded, collator, 8))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(30))
    widths = [batch.mask.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    expected = collator.collate(encoded, range(30), EVALUATION_EPOCH)
    assert masked(batches[0], rows[0]) == masked(expected, rows[0])
