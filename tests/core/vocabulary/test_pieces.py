"""Tokenizers with fewer tokens split the texts of a run as before."""

import json
import random

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from gkd_core.errors import ConfigError
from gkd_core.vocabulary.pieces import Merges, read_pieces
from gkd_core.vocabulary.reduced import check_held_out, held_out_texts, reduce_vocabulary
from gkd_core.vocabulary.rewrite import describe

CORPUS = held_out_texts()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
NAMES = {
    f"{name}_token": t
    for name, t in zip(("pad", "unk", "bos", "eos", "mask"), SPECIAL, strict=True)
}


def texts(number, seed):
    """Sentences of the words of the corpus: a run's, or others."""
    words = sorted({word for text in CORPUS for word in text.split()})
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=8)) for _ in range(number)]


def wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=900, **training()))
    made.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    return made


def bytes_bpe():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, **training())
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.Sequence([template(), processors.ByteLevel()])
    return made


def spelled_bpe():
    """As SentencePiece does it: a mark for spaces, bytes for characters without a token."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=900, **training()))
    written = json.loads(made.to_str())
    model = written["model"]
    spelled = {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    written["model"] = {**model, "vocab": model["vocab"] | spelled, "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(written))


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=900, unk_token="<unk>", **training())
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = template()
    return made


def words():
    known = {token: number for number, token in enumerate(SPECIAL)}
    for text in CORPUS:
        for word in text.split():
            known.setdefault(word, len(known))
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def template():
    frame = [("<s>", 2), ("</s>", 3)]
    return processors.TemplateProcessing(single="<s> $A </s>", special_tokens=frame)


def training():
    return {"special_tokens": SPECIAL, "show_progress": False}


KINDS = {make.__name__: make for make in (wordpiece, bytes_bpe, spelled_bpe, unigram, words)}


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    """A tokenizer with all its tokens, and one that was added."""
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param](), **NAMES)
    made.add_tokens(["<tool>"], special_tokens=True)
    return made


def used_by(tokenizer, rows):
    return {one for ids in tokenizer(rows)["input_ids"] for one in ids}


def cut(tokenizer, rows, size):
    config = PretrainedConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=[3])
    return reduce_vocabulary(tokenizer, config, used_by(tokenizer, rows), size, "teacher.model")


def smallest(tokenizer, rows):
    with pytest.raises(ConfigError, match="Set it to") as refused:
        cut(tokenizer, rows, 1)
    return int(str(refused.value).split("Set it to ")[1].split()[0])


def test_texts_of_the_run_are_split_as_before(whole):
    rows = texts(40, seed=0)
    for size in (smallest(whole, rows), len(whole) - 7, len(whole)):
        made = cut(whole, rows, size)
        assert len(made.tokenizer) == len(made.kept) == len(set(made.kept)) == size
        found = [[made.kept[one] for one in ids] for ids in made.tokenizer(rows)["input_ids"]]
        assert found == whole(rows)["input_ids"]


def test_every_token_keeps_its_text_and_special_ones_their_role(whole):
    rows = texts(40, seed=0)
    made = cut(whole, rows, smallest(whole, rows) + 3)
    tokens = made.tokenizer.convert_ids_to_tokens(range(len(made.kept)))
    assert tokens == whole.convert_ids_to_tokens(list(made.kept))
    assert made.tokenizer.special_tokens_map == whole.special_tokens_map
    assert "<tool>" in made.tokenizer.get_vocab()
    read = made.tokenizer(f"a<tool>{rows[0]}")["input_ids"]
    assert made.tokenizer.convert_tokens_to_ids("<tool>") in read


def test_other_texts_are_read_back_whole(whole):
    rows = texts(40, seed=0)
    made = cut(whole, rows, smallest(whole, rows))
    lost = 0
    for text in texts(200, seed=1):
        ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
        known = whole(text, add_special_tokens=False)["input_ids"]
        if made.tokenizer.unk_token_id in ids:
            lost += 1
        else:
            assert made.tokenizer.decode(ids) == whole.decode(known)
            assert whole.decode([made.kept[one] for one in ids]) == whole.decode(known)
    if describe(whole)["model"]["type"] in ("WordPiece", "BPE"):
        assert lost == 0  # every character has a token, or its bytes have


def test_a_saved_tokenizer_is_read_as_it_was(whole, tmp_path):
    rows = texts(40, seed=0)
    made = cut(whole, rows, smallest(whole, rows))
    made.tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read(rows)["input_ids"] == made.tokenizer(rows)["input_ids"]
    assert read.special_tokens_map == whole.special_tokens_map


def test_a_merged_token_needs_what_it_is_merged_from():
    merges = [["l", "o"], ["w", "e"], ["lo", "w"], ["we", "r"], ["lo", "wer"], ["low", "er"]]
    tokens = ["l", "o", "w", "e", "r", "lo", "we", "low", "wer", "lower", "er"]
    vocab = {token: number for number, token in enumerate(tokens)}
    pieces = Merges({"type": "BPE", "vocab": vocab, "merges": merges}, spells_bytes=False)
    # `low` comes of (lo, w) only where no `e` follows: (we) is merged before it.
    assert set(pieces.needs("low")) == {"l", "o", "w", "lo", "low"}
    assert set(pieces.needs("lower")) == {"l", "o", "w", "e", "r", "lo", "we", "wer", "lower"}
    assert pieces.needs("er") == ()  # no merge makes it: it can only be taken as it is
    kept = {vocab[token]: number for number, token in enumerate(("l", "o", "w", "e", "lo", "we"))}
    assert pieces.cut(kept)["merges"] == [["l", "o"], ["w", "e"]]


def test_marks_of_continued_and_ended_words_are_part_of_a_merge():
    vocab = {"a": 0, "##b": 1, "ab": 2, "b</w>": 3, "ab</w>": 4}
    prefixed = {"vocab": vocab, "merges": ["a ##b"], "continuing_subword_prefix": "##"}
    assert set(Merges(prefixed, False).needs("ab")) == {"a", "##b", "ab"}
    ended = {"vocab": vocab, "merges": ["a b</w>"], "end_of_word_suffix": "</w>"}
    assert set(Merges(ended, False).needs("ab</w>")) == {"a", "b</w>", "ab</w>"}


def test_the_rest_is_filled_up_by_rank_and_reserved_tokens_come_last():
    tokens = [*SPECIAL, "[unused0]", "[unused1]", "b", "c", "d", "e"]
    made = Tokenizer(models.WordLevel({t: n for n, t in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)
    # Letters of one character spell words, so that they are needed in any case.
    assert smallest(whole, ["d"]) == 9
    assert [whole.convert_ids_to_tokens(n) for n in cut(whole, ["d"], 10).kept][5] == "[unused0]"


def test_too_small_and_too_large_are_refused_with_the_number(whole):
    rows = texts(40, seed=0)
    least = smallest(whole, rows)
    with pytest.raises(ConfigError, match=f"{least - 1} is too small.*Set it to {least} or more"):
        cut(whole, rows, least - 1)
    with pytest.raises(ConfigError, match=f"which has {len(whole)} tokens"):
        cut(whole, rows, len(whole) + 1)


def test_a_tokenizer_of_another_algorithm_is_refused():
    with pytest.raises(ConfigError, match=r"of type 'Other': it can cut WordLevel, WordPiece"):
        read_pieces({"model": {"type": "Other"}}, "teacher.model")


def test_a_tokenizer_that_loses_text_is_refused(whole):
    rows = texts(40, seed=0)
    made = cut(whole, rows, smallest(whole, rows))
    known = next(text for text in rows if whole.unk_token_id not in used_by(whole, [text]))
    shifted = [made.kept[-1], *made.kept[:-1]]
    with pytest.raises(ConfigError, match=r"reads .* back as"):
        check_held_out(whole, made.tokenizer, shifted, [known], "teacher.model")


def test_a_model_that_counts_positions_from_its_padding_keeps_its_id():
    from transformers import XLMRobertaConfig

    whole = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe(), **{**NAMES, "pad_token": "<mask>"}
    )
    whole.add_tokens(["<tool>"])
    config = XLMRobertaConfig(pad_token_id=whole.pad_token_id)
    made = reduce_vocabulary(whole, config, {0}, 300, "teacher.model")
    assert made.kept[whole.pad_token_id] == whole.pad_token_id
    late = PreTrainedTokenizerFast(tokenizer_object=bytes_bpe(), **{**NAMES, "pad_token": "<late>"})
    config = XLMRobertaConfig(pad_token_id=late.pad_token_id)
    with pytest.raises(ConfigError, match="count positions"):
        reduce_vocabulary(late, config, {0}, 300, "teacher.model")
