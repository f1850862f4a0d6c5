"""Words as three kinds of vocabulary tell them, and in batches."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.vocabulary import train_tokenizer
from gkd_core.data.words import Words
from gkd_core.plugins import registry

KINDS = registry().kinds

TEXTS = ["unhappy cats ran", "a cat"]
PIECES = ["un", "happy", "cat", "s", "ran", "a"]


def wordpiece():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##happy", "cat", "##s", "ran", "a", "."]
    ids = {name: index for index, name in enumerate(names)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")},
    )


def bpe(space, prepared):
    """A BPE vocabulary whose words begin with `space`."""
    letters = sorted({*"".join(PIECES), space, "."})
    merges = []
    tokens = list(letters)
    for piece in (
        "un",
        f"{space}un",
        "happy",
        "cat",
        f"{space}cat",
        "ran",
        f"{space}ran",
        f"{space}a",
    ):
        parts = [piece[0]]
        for letter in piece[1:]:
            pair = ("".join(parts), letter)
            parts.append(letter)
            if (joined := "".join(pair)) not in tokens:
                merges.append(pair)
                tokens.append(joined)
    tokens += ["<s>", "</s>"]
    ids = {name: index for index, name in enumerate(tokens)}
    made = Tokenizer(models.BPE(ids, merges))
    prepared(made)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def byte_level(made):
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def sentencepiece(made):
    """As in Llama: the whole text is one piece for the tokenizer, spaces are letters."""
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )


TOKENIZERS = {
    "wordpiece": wordpiece,
    "byte-level": lambda: bpe("Ġ", byte_level),
    "sentencepiece": lambda: bpe("▁", sentencepiece),
}


def spelled(tokenizer, text):
    """The text of each word, by its number."""
    ids = np.array(tokenizer(text)["input_ids"])
    numbers, words = Words(tokenizer).number(ids), {}
    for token, number in zip(tokenizer.convert_ids_to_tokens(ids), numbers, strict=True):
        words[number] = words.get(number, "") + token.strip("Ġ▁").removeprefix("##")
    words.pop(-1, None)
    assert list(words) == list(range(len(words)))
    return list(words.values())


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_word_have_its_number(kind, text):
    tokenizer = TOKENIZERS[kind]()
    assert len(tokenizer(text)["input_ids"]) > len(text.split())
    assert spelled(tokenizer, text) == text.split()


def test_special_tokens_are_no_words_but_unknown_ones_are():
    tokenizer = wordpiece()
    ids = tokenizer("cats xyz", "a .")["input_ids"]
    assert Words(tokenizer).number(np.array(ids)).tolist() == [-1, 0, 0, 1, -1, 2, 3, -1]


def test_the_embedded_tasks_words_are_those_of_its_tokenizer():
    tokenizer = train_tokenizer(["Return the unhappy (cat)."] * 3, 300, 32)
    assert spelled(tokenizer, "the (cat)") == ["the", "(", "cat", ")"]


def test_a_vocabulary_without_marks_has_a_word_for_each_token(world):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "teacher")
    assert spelled(tokenizer, "the good movie") == ["the", "good", "movie"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_knows_the_words_also_of_masked_tokens(side, world):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "teacher", padding_side=side)
    rows = KINDS["masked-lm"].encode(Split(["the good movie", "so bad"]), tokenizer, 16)
    batch = Collator(tokenizer, KINDS["masked-lm"], 0.9, 1).collate(rows, [0, 1], 0, width=6)
    assert (batch.inputs["input_ids"] == tokenizer.mask_token_id).any()
    short = [-1, 0, 1, -1]
    padded = {"left": [-1, -1, *short], "right": [*short, -1, -1]}
    whole = {"left": [-1, -1, 0, 1, 2, -1], "right": [-1, 0, 1, 2, -1, -1]}
    assert batch.words.tolist() == [whole[side], padded[side]]
