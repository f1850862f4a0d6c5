"""Recipes for a teacher with another tokenizer: each runs."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from gkd_core.models.tokenizer import token_texts
from gkd_core.plugins import registry

RECIPES = {"dskd": "0.5*hard+0.5*dskd", "gold": "gold", "uld": "hard+1.5*uld"}
"""The method of each recipe."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts with characters of one to four bytes, and with spaces at their ends."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    texts = ("the film was good", " naïve café, 漢字 in a film! ", "𝄞 it was bad  and sad")
    file.write_text("".join(f"{text} {n}\n" for n in range(16) for text in texts))
    return file


@pytest.fixture
def given(tongues, corpus):
    settings = {
        "task.validation": corpus,
        "task.max_length": 64,
        "training.steps": 4,
        "training.batch_size": 8,
        "training.log_every": 1,
        "training.lr": 1e-3,
        "output.reuse": "false",
        "output.tensorboard": "false",
    }
    models = ["--teacher", tongues / "causal-bert", "--student", tongues / "causal-roberta"]
    pairs = (("--set", f"{name}={value}") for name, value in settings.items())
    return [*models, "--data", corpus, "--no-baseline", *(part for pair in pairs for part in pair)]


def test_every_method_that_aligns_tokens_has_a_recipe():
    aligning = {n for n, method in registry().methods.items() if method.aligns}
    assert aligning == RECIPES.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_with_a_teacher_of_other_tokens(invoke, given, tmp_path, recipe):
    done = invoke("run", "--recipe", recipe, *given, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert "teacher: another tokenizer" in done.out
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert rows[-1]["name"] == f"student, {RECIPES[recipe]}"


def test_tokens_of_different_vocabularies_are_known_by_their_text(tongues):
    found = {}
    for family in ("bert", "roberta"):
        tokenizer = AutoTokenizer.from_pretrained(tongues / family)
        texts = token_texts(tokenizer)
        assert len(texts) == len(tokenizer)
        assert not any(texts[token] for token in tokenizer.all_special_ids)
        found[family] = {token: texts[id] for token, id in tokenizer.get_vocab().items()}
    assert found["bert"]["film"] == found["roberta"]["Ġfilm"] == " film"
    assert found["bert"]["##a"] == found["roberta"]["a"] == "a"
    assert found["roberta"]["Ã"] == "", "a byte of a character has no text"


TEMPLATES = {
    "bert": "{% for m in messages %}[CLS] {{ m.content }} [SEP] {% endfor %}",
    "roberta": "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}",
}


@pytest.fixture
def talking(tongues, tmp_path):
    """Language models of two tokenizers, with a chat template each."""
    for family, template in TEMPLATES.items():
        shutil.copytree(tongues / f"causal-{family}", tmp_path / family)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / family)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / family)
    rows = [
        {"prompt": f"was film {n} good?", "response": f"naïve film {n}, it was bad"}
        for n in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_answers_are_aligned_whatever_the_chat_templates(invoke, talking):
    models = ["--teacher", talking / "bert", "--student", talking / "roberta", "--no-baseline"]
    rows = [f"task.{split}={talking / 'rows.jsonl'}" for split in ("train", "validation")]
    settings = [*rows, "task.kind=causal-lm", "training.steps=2", "output.tensorboard=false"]
    given = [part for setting in settings for part in ("--set", setting)]
    done = invoke("run", "--method", "uld+gold+dskd", *models, *given, "--output", "run")
    assert done.code == 0, done.err
    tokenizer = AutoTokenizer.from_pretrained(talking / "roberta")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(talking / "roberta")
    (talking / "roberta" / "chat_template.jinja").unlink(missing_ok=True)
    done = invoke("explain", "--method", "gold", *models, *given)
    assert done.code == 2
    assert "has conversations" in done.err
    assert "has none" in done.err


def test_a_conversation_that_only_the_student_cuts_is_left_out(invoke, talking):
    long = {"prompt": "was this film good? " * 8, "response": "naïve film, it was bad"}
    with (talking / "rows.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    models = ["--teacher", talking / "bert", "--student", talking / "roberta", "--no-baseline"]
    settings = [
        *(f"task.{split}={talking / 'rows.jsonl'}" for split in ("train", "validation")),
        *("task.kind=causal-lm", "task.max_length=48"),
        *("training.steps=2", "output.tensorboard=false"),
    ]
    given = [part for setting in settings for part in ("--set", setting)]
    done = invoke("run", "--method", "uld", *models, *given, "--output", "run")
    assert done.code == 0, done.err
    assert "left out: 1 without an answer" in done.out + done.err
