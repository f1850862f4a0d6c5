"""Small data sets of every kind whose labels follow from words, and untrained models."""

from __future__ import annotations

import json
import random

import pytest

PEOPLE, PLACES = ["anna", "bruno", "clara", "david"], ["paris", "oslo", "rome", "lima"]
FILLERS = ["went", "to", "saw", "met", "in", "the", "near", "with", "old", "new", "house", "road"]
COLORS, NOUNS = ["red", "blue", "green"], ["car", "tree", "door", "boat"]
QUESTION = ["what", "color", "is", "the", "where", "does", "live", "?"]
WORDS = [*PEOPLE, *PLACES, *FILLERS, *COLORS, *NOUNS, *QUESTION, "lives", "yes", "no", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _filler(draw, count):
    return [draw.choice(FILLERS) for _ in range(count)]


def multi_label(draw):
    words = _filler(draw, draw.randint(3, 6))
    labels = [name for name, chance in (("person", 0.6), ("place", 0.5)) if draw.random() < chance]
    words += [draw.choice(PEOPLE)] * ("person" in labels) + [draw.choice(PLACES)] * (
        "place" in labels
    )
    draw.shuffle(words)
    return {"text": " ".join(words), "labels": labels}


def token_classification(draw):
    words, tags = [], []
    for _ in range(draw.randint(3, 6)):
        what = draw.choice(["filler", "person", "place", "filler"])
        if what == "filler":
            words, tags = [*words, draw.choice(FILLERS)], [*tags, "O"]
        elif what == "person":
            words = [*words, draw.choice(PEOPLE), draw.choice(PEOPLE)]
            tags = [*tags, "B-PER", "I-PER"]
        else:
            words, tags = [*words, draw.choice(PLACES)], [*tags, "B-LOC"]
    return {"tokens": words, "ner_tags": tags}


def multiple_choice(draw):
    color, label = draw.choice(COLORS), draw.randrange(3)
    endings = draw.sample([c for c in COLORS if c != color], 2)
    endings.insert(label, color)
    nouns = [f"{draw.choice(NOUNS)} {one}" for one in endings]
    return {"context": f"the {color} car", "choices": nouns, "label": label}


def span_extraction(draw):
    person, place = draw.choice(PEOPLE), draw.choice(PLACES)
    words = [*_filler(draw, draw.randint(2, 20)), person, "lives", "in"]
    context = " ".join([*words, place, ".", *_filler(draw, draw.randint(0, 15))])
    answers = {"text": [place], "answer_start": [len(" ".join(words)) + 1]}
    if draw.random() < 0.25:
        context, answers = " ".join(_filler(draw, 12)), {"text": [], "answer_start": []}
    return {"question": f"where does {person} live ?", "context": context, "answers": answers}


def embedding(draw):
    one, other = draw.sample(COLORS, 2)
    same = draw.random() < 0.5
    return {
        "sentence1": f"the {one} {draw.choice(NOUNS)}",
        "sentence2": f"the {one if same else other} {draw.choice(NOUNS)}",
        "score": 5.0 if same else 1.5,
    }


def choices(draw):
    """A row as of `multiple_choice`, with two to four choices."""
    row = multiple_choice(draw)
    row["choices"] += [f"{draw.choice(NOUNS)} yellow"] * draw.randrange(2)
    if row["label"] < 2:
        row["choices"] = row["choices"][: draw.randint(2, len(row["choices"]))]
    return row


def spans(draw):
    """Two words of a text; the first is a person or not."""
    words = [draw.choice(PEOPLE), draw.choice(PLACES), *_filler(draw, 3)]
    label, second = draw.randrange(2), draw.randrange(2, 5)
    places = [[len(" ".join([*words[:n], ""])), len(" ".join(words[: n + 1]))] for n in range(5)]
    row = {"text": " ".join(words), "spans": [places[label], places[second]]}
    return {**row, "label": ("yes", "no")[label]}


def shared_cloze(draw):
    """A question whose answer is one of two words."""
    color = draw.choice(COLORS)
    label = "yes" if color == "red" else "no"
    return {"text": f"the {color} {draw.choice(NOUNS)} is red ? [BLANK]", "label": label}


def own_cloze(draw):
    """A question whose answer is one of the names in it."""
    who, others = draw.choice(PEOPLE), draw.sample(PLACES, draw.randint(1, 3))
    label = draw.randrange(len(others) + 1)
    text = f"{who} saw {' '.join(others)} . who saw ? [BLANK]"
    return {"text": text, "choices": [*others[:label], who, *others[label:]], "label": label}


MAKERS = {
    "choices": choices,
    "span-classification": spans,
    "masked-cloze": shared_cloze,
    "causal-cloze": own_cloze,
    "multi-label": multi_label,
    "token-classification": token_classification,
    "multiple-choice": multiple_choice,
    "span-extraction": span_extraction,
    "embedding": embedding,
    "similarity": embedding,
}


def write_rows(path, kind, count, seed):
    draw = random.Random(seed)
    rows = [MAKERS[kind](draw) for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer of whole words."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def task(tmp_path_factory, tokenizer):
    """`task(kind)`: a folder with rows of a kind and an untrained BERT, `untrained`."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM

    folders = {}

    def _task(kind):
        if kind in folders:
            return folders[kind]
        folder = folders[kind] = tmp_path_factory.mktemp(kind)
        for name, count in (("train", 256), ("validation", 48), ("test", 64)):
            write_rows(folder / f"{name}.jsonl", kind, count, f"{kind} {name}")
        torch.manual_seed(0)
        if kind == "causal-cloze":
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
                pad_token_id=0,
            )
            LlamaForCausalLM(config).save_pretrained(folder / "untrained")
            tokenizer.save_pretrained(folder / "untrained")
            return folder
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertForMaskedLM if kind == "masked-cloze" else BertModel
        model(config).save_pretrained(folder / "untrained")
        tokenizer.save_pretrained(folder / "untrained")
        return folder

    return _task
