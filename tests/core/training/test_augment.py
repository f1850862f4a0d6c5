"""Copies of rows with other words: which words, which others, how often, and what stays."""

import json
import string

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from gkd_core.contract.task import Split
from gkd_core.data import augment as augment_module
from gkd_core.data.augment import Word, augment
from gkd_core.models import word_proposer as proposer_module
from gkd_core.models.word_proposer import MaskedProposer


class Shouts:
    """Proposes a word in capitals, with a number."""

    def __init__(self, number=3):
        self.number = number
        self.requests = []

    def words(self, texts):
        return [list(self._words(text)) for text in texts]

    def _words(self, text):
        start = 0
        for position, word in enumerate(text.split(" ")):
            if word.isalpha():
                yield Word(start, start + len(word), position)
            start += len(word) + 1

    def candidates(self, texts, wanted):
        self.requests += [(texts[row], word) for row, word in wanted]
        spelled = [texts[row][word.start : word.end].upper() for row, word in wanted]
        return [[f"{word}{n}" for n in range(self.number)] for word in spelled]


TEXTS = ["one, two  and three", "!", "", "a b c d e"]


def test_every_word_is_replaced_in_every_copy_if_always():
    rows = augment(Split(TEXTS, labels=[0, 1, 0, 1]), Shouts(1), copies=2, share=1.0, seed=1)
    changed = ["one, TWO0  AND0 THREE0", "!", "", "A0 B0 C0 D0 E0"]
    assert rows.text == [*TEXTS, *changed, *changed]
    assert rows.labels == [0, 1, 0, 1] * 3
    assert rows.pair is None


def test_nothing_is_asked_for_words_that_stay():
    proposer = Shouts()
    rows = augment(Split(TEXTS), proposer, copies=3, share=0.0, seed=1)
    assert rows.text == TEXTS * 4
    assert proposer.requests == []


def test_each_word_of_each_copy_is_drawn_by_itself():
    words = 40
    text = " ".join(string.ascii_lowercase[n % 26] for n in range(words))
    rows = augment(Split([text]), Shouts(15), copies=200, share=0.4, seed=1)
    copies = np.array([row.split(" ") for row in rows.text[1:]])
    replaced = copies != np.array(text.split(" "))
    assert replaced.mean() == pytest.approx(0.4, abs=0.02)
    assert replaced.mean(0).std() < 0.1
    numbers = [int(word[1:]) for word in copies[replaced]]
    assert np.bincount(numbers, minlength=15) / len(numbers) == pytest.approx(1 / 15, abs=0.02)


def test_a_row_depends_on_seed_and_place_alone(monkeypatch):
    def copies(texts, seed=1):
        return augment(Split(texts), Shouts(), 2, 0.5, seed).text[len(texts) :]

    texts = ["a b c d e f g"] * 5
    whole = copies(texts)
    assert len(set(whole)) > 5
    assert copies(texts, seed=2) != whole
    monkeypatch.setattr(augment_module, "CHUNK", 2)
    assert copies(texts) == whole
    assert copies(["x y", *texts[1:]])[1:5] == whole[1:5]


def test_both_texts_of_a_pair_are_copied_in_step():
    rows = augment(Split(["a", "b"], ["c", "d"], [0.5, 0.1]), Shouts(1), 1, 1.0, 1)
    assert (rows.text, rows.pair) == (["a", "b", "A0", "B0"], ["c", "d", "C0", "D0"])
    assert rows.labels == [0.5, 0.1] * 2


WORDS = ["[PAD]", "[UNK]", "[MASK]", "good", "bad", "##ness", "movie", "3", "film", "."]


class Likes(torch.nn.Module):
    """Finds a token likelier the higher its number; sees whether there is one mask in each row."""

    device = torch.device("cpu")
    config = BertConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=8)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input_ids, attention_mask):
        assert ((input_ids == 2).sum(1) == 1).all()
        assert ((input_ids != 0) == attention_mask.bool()).all()
        self.seen.append(tuple(input_ids.shape))
        logits = torch.arange(float(self.config.vocab_size)).expand(*input_ids.shape, -1)
        return type("Output", (), {"logits": logits})


def tokenizer():
    ids = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )


def test_only_words_of_one_token_and_of_letters_are_replaced():
    texts = ["good movie. xyz 3 badness", "bad"]
    found = MaskedProposer(Likes(), tokenizer(), 15).words(texts)
    spelled = [[t[w.start : w.end] for w in words] for t, words in zip(texts, found, strict=True)]
    assert spelled == [["good", "movie"], ["bad"]]
    assert [word.position for word in found[0]] == [0, 1]


def test_what_lies_beyond_the_models_length_stays():
    (words,) = MaskedProposer(Likes(), tokenizer(), 15).words(["good " * 12])
    assert len(words) == 8


def test_candidates_are_other_whole_words_likeliest_first(monkeypatch):
    texts, model = ["good movie", "film . bad"], Likes()
    proposer = MaskedProposer(model, tokenizer(), 2)
    wanted = [(row, word) for row, words in enumerate(proposer.words(texts)) for word in words]
    expected = [["film", "movie"], ["film", "bad"], ["movie", "bad"], ["film", "movie"]]
    assert proposer.candidates(texts, wanted) == expected
    assert model.seen == [(4, 3)]
    monkeypatch.setattr(proposer_module, "LOGITS", 1)
    assert proposer.candidates(texts, wanted) == expected
    assert model.seen[1:] == [(1, 2), (1, 2), (1, 3), (1, 3)]
    everything = MaskedProposer(Likes(), tokenizer(), 15).candidates(texts, wanted[:1])
    assert everything == [["film", "movie", "bad"]]


@pytest.fixture
def given(settings, world):
    """Arguments of a run with a copy of each row."""
    model = f"task.augment_model={world / 'lm-teacher'}"
    return [*settings, "--set", "task.augment=2", "--set", model, "--set", "training.steps=2"]


def test_a_run_learns_from_the_copies_which_are_made_once(invoke, given, tmp_path, monkeypatch):
    done = invoke("run", "--method", "soft", *given, "--output", tmp_path / "one")
    assert done.code == 0, done.err
    assert "rows 288 to train on, 40 to validate" in " ".join(done.out.split())
    (kept,) = (tmp_path / "cache" / "augmented").iterdir()
    rows = json.loads(kept.read_text())["content"]
    original, copies = rows["text"][:96], rows["text"][96:]
    assert rows["labels"] == rows["labels"][:96] * 3
    changed = [
        a != b
        for old, new in zip(original * 2, copies, strict=True)
        for a, b in zip(old.split(), new.split(), strict=True)
    ]
    assert np.mean(changed) == pytest.approx(0.4, abs=0.05)
    before = kept.read_bytes()
    monkeypatch.setattr(MaskedProposer, "__init__", None)  # asked again it would fail
    assert invoke("run", "--method", "soft", *given, "--output", tmp_path / "two").code == 0
    assert kept.read_bytes() == before


def test_explain_says_so_and_text_is_left_as_it_is(invoke, given, world):
    done = invoke("explain", "soft", *given)
    assert "2 augmented copies of each row" in " ".join(done.out.split())
    lm = ("--set", "task.kind=lm", "--set", f"teacher.model={world / 'lm-teacher'}")
    done = invoke("explain", "soft", *given, *lm)
    assert done.code == 0, done.err
    assert "augmented" not in done.out


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (None, "no model proposes the words; name a masked language model"),
        ("nowhere", "task.augment_model = "),
        ("lm-decoder", "(llama) cannot fill in a masked word"),
        ("teacher", "masked-LM head"),
    ],
)
def test_what_cannot_propose_words_is_refused(invoke, settings, world, model, says):
    named = [] if model is None else ["--set", f"task.augment_model={world / model}"]
    done = invoke("explain", "soft", *settings, "--set", "task.augment=1", *named)
    assert done.code == 2
    assert says in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_real_model_proposes_by_the_context(world):
    model = BertForMaskedLM.from_pretrained(world / "lm-teacher").eval()
    words = PreTrainedTokenizerFast.from_pretrained(world / "lm-teacher")
    proposer = MaskedProposer(model, words, 3)
    texts = ["the good movie was", "a bad film"]
    wanted = [(row, word) for row, found in enumerate(proposer.words(texts)) for word in found]
    found = proposer.candidates(texts, wanted)
    for (row, word), candidates in zip(wanted, found, strict=True):
        ids = torch.tensor([words(texts[row])["input_ids"]])
        old = ids[0, word.position].item()
        ids[0, word.position] = words.mask_token_id
        likely = model(ids).logits[0, word.position].argsort(descending=True).tolist()
        names = [words.convert_ids_to_tokens(token) for token in likely if token != old]
        assert candidates == [name for name in names if name.isalpha()][:3]
