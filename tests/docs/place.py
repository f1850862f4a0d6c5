"""A folder with the models, rows and runs that commands of the documentation name.

A page may name what is here, and nothing else: a classifier is DIR (DIR1 and DIR2 where there are
several, CLASSIFIER beside a masked language model LM), a language model that writes is LARGE, or
SMALL where it is the student. BERT has the blocks and heads of the base model, UNNAMED no names of
its classes. All have as many blocks as pages ask for, and are tiny.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

ROOT = Path(__file__).parents[2]
NAMED_AS = {
    "DIR": ("DIR1", "DIR2", "CLASSIFIER", "TEACHER", "OWN"),
    "LM": ("MLM", "PRETRAINED"),
    "LARGE": ("SMALL",),
}
WIDTHS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 96}
LABELS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


def write_place(world: Path, folder: Path) -> None:
    """Write models, rows and the folders of the repository that pages name."""
    _write_models(AutoTokenizer.from_pretrained(world / "teacher"), folder)
    for name, others in NAMED_AS.items():
        for other in others:
            (folder / other).symlink_to(folder / name)
    _write_rows(world, folder)
    (folder / "docs").symlink_to(ROOT / "docs")


def _write_models(tokenizer, folder: Path) -> None:
    torch.manual_seed(0)
    size = len(tokenizer)
    encoder = BertConfig(vocab_size=size, num_hidden_layers=6, **WIDTHS, **LABELS)
    deep = BertConfig(vocab_size=size, hidden_size=384, intermediate_size=512, **LABELS)
    decoder = LlamaConfig(
        vocab_size=size,
        num_hidden_layers=12,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=tokenizer.sep_token_id,
    )
    models = {
        "DIR": BertForSequenceClassification(encoder),
        "UNNAMED": BertForSequenceClassification(BertConfig(vocab_size=size, **WIDTHS)),
        "BERT": BertForSequenceClassification(deep),
        "LM": BertForMaskedLM(encoder),
        "EMBEDDER": BertModel(encoder),
        "LARGE": LlamaForCausalLM(decoder),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, model in {"OTHER": "LARGE", "ROBERTA": "DIR"}.items():
        shutil.copytree(folder / model, folder / name)
        _turn_words(folder / name / "tokenizer.json")


def _turn_words(path: Path) -> None:
    """Give the words of a tokenizer other ids: it is another tokenizer then."""
    found = json.loads(path.read_text())
    words = [word for word in found["model"]["vocab"] if not word.startswith("[")]
    ids = [found["model"]["vocab"][word] for word in words]
    found["model"]["vocab"] |= dict(zip(words, reversed(ids), strict=True))
    path.write_text(json.dumps(found))


def _write_rows(world: Path, folder: Path) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    named = {"neg": "negative", "pos": "positive"}
    tables = {
        "train": rows,
        "test": rows[:40],
        "labeled": rows[:40],
        "films": rows[:60],
        "books": rows[60:],
        "texts": [{"text": text} for text in texts],
        "reviews": [{"text": text, "label": named[label]} for text, label in _pairs(rows)],
        "cloze": [_cloze(text, label) for text, label in _pairs(rows)],
        "sts": [_scored(text, texts[0], n / 40) for n, text in enumerate(texts[:40])],
        "chats": [{"prompt": text, "response": label} for text, label in _pairs(rows)],
        "code": [{"prompt": text, "response": label} for text, label in _pairs(rows[:50])],
        "prompts": [{"prompt": text} for text in texts],
        "answered": [{"prompt": text, "response": texts[0]} for text in texts[:30]],
        "told": [{"question": t, "answer": texts[0], "ask": t, "say": texts[1]} for t in texts],
    }
    for name, table in tables.items():
        lines = (f"{json.dumps(row)}\n" for row in table)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for name in ("train.csv", "reviews.csv"):
        _write_csv(folder / name, ("text", "label"), zip(texts, labels, strict=True))
    answers = [(text, texts[0], label) for text, label in _pairs(rows)]
    _write_csv(folder / "pairs.csv", ("question", "answer", "relevant"), answers)
    for name in ("corpus.txt", "train.txt"):
        shutil.copy(world / "corpus.txt", folder / name)


def _pairs(rows):
    return [(row["text"], row["label"]) for row in rows]


def _cloze(text, label):
    return {"text": f"{text} it is [BLANK]", "label": {"neg": "bad", "pos": "good"}[label]}


def _scored(text, pair, score):
    return {"sentence1": text, "sentence2": pair, "score": score}


def _write_csv(path: Path, head, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
