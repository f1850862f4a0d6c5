from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gkd_core.contract.task import Split
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry

KINDS = registry().kinds

CLS, SEP = 2, 3
WORDS = {f"w{i}": i + 10 for i in range(30)}


def tokenizer(special=True):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 4, **WORDS}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=16,
        pad_token="[PAD]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


def text(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def ids(*numbers):
    return [number + 10 for number in numbers]


def rows(encoded, name="input_ids"):
    return [encoded.row(index)[name].tolist() for index in range(len(encoded))]


def test_rows_are_those_of_the_tokenizer():
    split = Split([text(1, 2), text(3)], labels=[1, 0])
    encoded = KINDS["classification"].encode(split, tokenizer(), 8)
    assert rows(encoded) == [[CLS, *ids(1, 2), SEP], [CLS, *ids(3), SEP]]
    assert rows(encoded, "token_type_ids") == [[0, 0, 0, 0], [0, 0, 0]]
    assert encoded.lengths.tolist() == [4, 3]
    assert (encoded.labels.dtype, encoded.labels.tolist()) == (np.int64, [1, 0])
    assert encoded.num_truncated == 0


def test_values_of_a_regression_are_fp32():
    encoded = KINDS["regression"].encode(Split(["w1"], labels=[0.5]), tokenizer(), 8)
    assert (encoded.labels.dtype, encoded.labels.tolist()) == (np.float32, [0.5])


def test_segment_ids_are_absent_where_the_tokenizer_makes_none():
    encoded = KINDS["classification"].encode(Split(["w1 w2"]), tokenizer(special=False), 8)
    assert set(encoded.row(0)) == {"input_ids"}
    assert encoded.labels is None


def test_only_longer_texts_are_cut_and_counted():
    split = Split([text(1, 2, 3), text(1, 2, 3, 4), text(1, 2), text(*range(20))])
    encoded = KINDS["classification"].encode(split, tokenizer(), 5)
    expected = [CLS, *ids(1, 2, 3), SEP]
    assert rows(encoded) == [expected, expected, [CLS, *ids(1, 2), SEP], [CLS, *ids(0, 1, 2), SEP]]
    assert encoded.num_truncated == 2


def test_the_longer_text_of_a_pair_is_cut_first():
    split = Split([text(1, 2, 3, 4)], pair=[text(5)])
    encoded = KINDS["classification"].encode(split, tokenizer(), 6)
    assert rows(encoded) == [[CLS, *ids(1, 2), SEP, *ids(5), SEP]]
    assert rows(encoded, "token_type_ids") == [[0, 0, 0, 0, 1, 1]]
    assert encoded.num_truncated == 1


def test_many_rows_are_encoded_as_one_by_one():
    draw = np.random.default_rng(0)
    texts = [text(*draw.integers(30, size=draw.integers(1, 12))) for _ in range(2345)]
    encoded = KINDS["classification"].encode(Split(texts), tokenizer(), 8)
    alone = tokenizer()(texts)["input_ids"]
    assert encoded.num_truncated == sum(len(row) > 8 for row in alone)
    assert encoded.lengths.tolist() == [min(len(row), 8) for row in alone]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("pair", [None, [text(3, 4, 5), text(6)]])
def test_rows_are_those_that_transformers_makes(pair, special):
    made = tokenizer(special)
    made.model_input_names = ["input_ids", "token_type_ids"]
    split = Split([text(1) + " [SEP]", text(*range(9))], pair)
    for made.split_special_tokens in (False, True):
        for located in (False, True):
            kind = KINDS["classification"]
            encoded = kind.encode(replace(split, byte_offsets=located), made, 6)
            alone = tokenizer(special)
            alone.split_special_tokens = made.split_special_tokens
            wanted = alone(split.text, pair, truncation="longest_first", max_length=6)
            assert rows(encoded) == wanted["input_ids"]
            expected = [encoding.type_ids for encoding in wanted.encodings]
            assert rows(encoded, "token_type_ids") == expected


@pytest.mark.parametrize("step", ["__call__", "_encode_plus"])
def test_a_tokenizer_with_code_of_its_own_is_asked_for_its_tokens(step):
    made = tokenizer()
    usual = getattr(PreTrainedTokenizerFast, step)

    def spelled_out(self, text, *arguments, **settings):
        return usual(self, [each.replace("one", "w1") for each in text], *arguments, **settings)

    made.__class__ = type("Own", (PreTrainedTokenizerFast,), {step: spelled_out})
    encoded = KINDS["classification"].encode(Split(["one", "w2"]), made, 8)
    assert rows(encoded) == [[CLS, *ids(1), SEP], [CLS, *ids(2), SEP]]


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_long_text_is_cut_into_framed_blocks_that_lose_nothing(kind, caplog):
    encoded = KINDS[kind].encode(Split([text(*range(20)), text(7)]), tokenizer(), 10)
    blocks = [ids(*range(8)), ids(*range(8, 16)), ids(*range(16, 20)), ids(7)]
    assert rows(encoded) == [[CLS, *block, SEP] for block in blocks]
    assert {len(row) for row in rows(encoded, "token_type_ids")} == {10, 6, 3}
    assert encoded.num_truncated == 0
    assert not caplog.records


def test_blocks_of_one_token_are_dropped():
    split = Split([text(*range(7)), text(9), text(1, 2)])
    encoded = KINDS["causal-lm"].encode(split, tokenizer(special=False), 3)
    assert rows(encoded) == [ids(0, 1, 2), ids(3, 4, 5), ids(1, 2)]


def test_nothing_to_model_is_refused():
    with pytest.raises(DataError, match="two or more tokens"):
        KINDS["causal-lm"].encode(Split([text(9)]), tokenizer(special=False), 3)


def test_text_without_tokens_is_refused():
    with pytest.raises(DataError, match=r"no tokens for the text '\\u2028' \(row 2"):
        KINDS["classification"].encode(Split(["w1", "\u2028"]), tokenizer(special=False), 8)


def test_length_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"task\.max_length=3 .* the 3 special tokens"):
        KINDS["classification"].encode(Split(["w1"], pair=["w2"]), tokenizer(), 3)
