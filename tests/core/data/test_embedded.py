"""The embedded task: rows without leakage, cached, the same for every run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import product

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer

from gkd_core.config.schema import RunConfig, TaskConfig, TrainingConfig
from gkd_core.data import docstrings, embedded
from gkd_core.data.assemble import without_labels
from gkd_core.data.docstrings import Passage, collect, groups, paragraphs, split, unique, words
from gkd_core.data.embedded import MAX_LENGTH, STUDENT_ROWS, Embedded
from gkd_core.data.vocabulary import train_tokenizer
from gkd_core.errors import ConfigError, DataError
from gkd_core.models.embedded_teachers import MODELS
from gkd_core.models.tokenizer import load_tokenizer, tokenizer_mismatch


@pytest.fixture(scope="module")
def cache(embedded_rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    shutil.copytree(embedded_rows, folder / "embedded")
    return folder


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(cache))


@pytest.fixture(scope="module")
def data(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GKD_CACHE", str(cache))
        return Embedded(TaskConfig()).load("classification", 0)


def runs(text):
    found = words(text)
    size = docstrings.SHINGLE
    return {tuple(found[start : start + size]) for start in range(len(found) - size + 1)}


def passages(*texts, label=0):
    return [Passage(text, label, f"module.py:{line}") for line, text in enumerate(texts)]


def library(folder, **sources):
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@pytest.mark.exhaustive
def test_every_class_is_in_every_split(data):
    for part in (data.train, data.validation, data.test):
        assert set(part.labels) == set(range(len(data.classes)))
        assert len(part.text) == len(part.labels)


def test_splits_have_the_stated_shares(data):
    total = len(data.train) + len(data.validation) + len(data.test)
    assert total > 5000
    assert len(data.test) / total == pytest.approx(docstrings.SHARES["test"], abs=0.01)
    assert len(data.validation) / total == pytest.approx(docstrings.SHARES["validation"], abs=0.01)


def test_no_held_out_row_resembles_a_training_row(data):
    seen = {}
    for row, text in enumerate(data.train.text):
        for run in runs(text):
            seen.setdefault(run, set()).add(row)
    train = [runs(text) for text in data.train.text]
    for text in [*data.validation.text, *data.test.text]:
        mine = runs(text)
        for row in set().union(*(seen.get(run, set()) for run in mine)):
            assert len(mine & train[row]) < docstrings.SIMILAR * len(mine | train[row])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_rows_are_the_same_in_another_process_with_another_hash_seed(data, tmp_path):
    program = (
        "from gkd_core.data.embedded import Embedded\n"
        "from gkd_core.config.schema import TaskConfig\n"
        "print(Embedded(TaskConfig()).load('classification', 1).rows_hash)"
    )
    environment = os.environ | {"GKD_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == data.rows_hash


def test_seed_of_the_run_does_not_change_the_rows(data):
    assert Embedded(TaskConfig()).load("classification", 5) == data


def test_second_load_reads_the_cache(data, monkeypatch):
    monkeypatch.setattr(docstrings, "collect", None)
    assert Embedded(TaskConfig()).load("classification", 0).rows_hash == data.rows_hash


@pytest.mark.parametrize(
    "damage", [lambda text: text[:1000], lambda text: text.replace("the", "teh", 1)]
)
def test_damaged_cache_is_named_and_made_again(data, embedded_rows, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path))
    shutil.copytree(embedded_rows, tmp_path / "embedded")
    (file,) = (tmp_path / "embedded").iterdir()
    rows = json.loads(file.read_text())["content"]
    file.write_text(damage(file.read_text()))
    monkeypatch.setattr(embedded, "_make_rows", lambda library: rows)  # it takes seconds
    said = f"{file.name} in the cache is damaged .* the damaged one is now {file.name}.damaged"
    with pytest.warns(UserWarning, match=said):
        made = Embedded(TaskConfig()).load("classification", 0)
    assert made.rows_hash == data.rows_hash
    assert sorted(path.name for path in file.parent.iterdir()) == [
        file.name,
        f"{file.name}.damaged",
    ]
    assert Embedded(TaskConfig()).load("classification", 0) == data


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_language_modeling_gets_the_same_text_without_labels(data, kind):
    task = Embedded(TaskConfig(kind=kind))
    plain = task.load("classification", 0)
    assert (plain.kind, plain.classes, plain.train.labels) == (kind, (), None)
    assert plain.train.text == data.train.text
    assert plain.rows_hash != data.rows_hash


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train": "a.csv"}, "task.train"),
        ({"kind": "regression"}, "kind"),
        (
            {"kind": "causal-lm", "default_teacher": "encoder"},
            "default_teacher.*does not support.*causal-lm",
        ),
        (
            {"kind": "masked-lm", "default_teacher": "decoder"},
            "default_teacher.*does not support.*masked-lm",
        ),
    ],
)
def test_settings_of_other_tasks_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        Embedded(TaskConfig(**settings)).check()


ROWS = {None: STUDENT_ROWS, "classification": STUDENT_ROWS, "causal-lm": 1000}
"""Rows of a student, by the kind of task; all there are for others."""


@pytest.mark.parametrize("kind", [None, "classification", "lm", "masked-lm", "causal-lm"])
def test_defaults_fit_the_schema_and_the_kind(kind):
    config = RunConfig(**Embedded.defaults(kind))
    assert config.task.max_length == MAX_LENGTH
    assert config.task.rows == ROWS.get(kind)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_small_default_teacher_is_smaller_and_shares_the_tokenizer(data, tmp_path, family):
    task = Embedded(TaskConfig(default_teacher=family))
    counts = []
    for size in ("small", "large"):
        task.default_teacher(data, size).build(tmp_path / size)
        model = MODELS[family, "classification"].from_pretrained(tmp_path / size)
        counts.append(model.num_parameters())
    assert counts[0] < counts[1]
    small, large = (AutoTokenizer.from_pretrained(tmp_path / size) for size in ("small", "large"))
    assert small.get_vocab() == large.get_vocab()


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_default_teacher_loads_as_a_hugging_face_directory(data, tmp_path, family, kind):
    rows = data if kind == "classification" else without_labels(data, kind)
    own = Embedded(TaskConfig(kind=kind, default_teacher=family)).default_teacher(rows)
    TrainingConfig(**own.training)
    own.build(tmp_path / "a")
    own.build(tmp_path / "b")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    model = MODELS[family, kind].from_pretrained(tmp_path / "a")
    assert ("token_type_ids" in tokenizer("open", "file")) == (family == "encoder")
    inputs = tokenizer(data.test.text[:3], padding=True, return_tensors="pt")
    logits = model(**inputs).logits
    if kind == "classification":
        assert logits.shape == (3, len(data.classes))
        assert list(model.config.id2label.values()) == list(data.classes)
    else:
        assert logits.shape == (*inputs["input_ids"].shape, len(tokenizer))
    assert model.config.max_position_embeddings >= MAX_LENGTH
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "bert"),
        ({"default_teacher": "decoder"}, "llama"),
        ({"kind": "masked-lm"}, "bert"),
        ({"kind": "causal-lm"}, "llama"),
    ],
)
def test_default_teacher_is_of_the_family_that_is_asked_for(data, tmp_path, settings, expected):
    task = Embedded(TaskConfig(**settings))
    task.default_teacher(task.load("masked-lm", 0)).build(tmp_path / "model")
    assert AutoConfig.from_pretrained(tmp_path / "model").model_type == expected


@pytest.mark.parametrize(("family", "kind"), [("encoder", "masked-lm"), ("decoder", "causal-lm")])
def test_default_teachers_of_a_family_share_shape_and_tokenizer(data, tmp_path, family, kind):
    plain = without_labels(data, kind)
    for name, rows in (("classifier", data), ("lm", plain)):
        Embedded(TaskConfig(default_teacher=family)).default_teacher(rows).build(tmp_path / name)
    mine, other = (load_tokenizer(str(tmp_path / n), False, "test") for n in ("classifier", "lm"))
    assert tokenizer_mismatch(mine, other) is None
    assert mine.model_input_names == other.model_input_names
    body = [
        {n: t.shape for n, t in AutoModel.from_pretrained(tmp_path / name).state_dict().items()}
        for name in ("classifier", "lm")
    ]
    assert body[0] == body[1]


def test_tokenizer_frames_texts_and_pairs_and_lowers_case():
    tokenizer = train_tokenizer(["open the file", "Open a file"] * 5, 280, 16)
    once = tokenizer("Open a FILE")["input_ids"]
    assert tokenizer.decode(once) == "[CLS] open a file[SEP]"
    pair = tokenizer("open", "file")
    assert tokenizer.decode(pair["input_ids"]) == "[CLS] open[SEP] file[SEP]"
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert len(tokenizer) <= 280


def test_a_word_has_the_same_token_after_a_sign_and_after_a_space():
    tokenizer = train_tokenizer(["open the (file)", "open a file"] * 5, 400, 16)
    file = tokenizer("file", add_special_tokens=False)["input_ids"]
    assert len(file) == 1
    assert file[0] in tokenizer("open the (file)")["input_ids"]


def test_sources_are_parsed_and_never_run(tmp_path):
    source = 'raise SystemExit("run")\n\ndef f():\n    """Return the sum of all the items."""\n'
    (found,) = collect(library(tmp_path, statistics=source))
    assert found.text == "Return the sum of all the items."
    assert list(docstrings.CHAPTERS)[found.label] == "numbers and functions"


def test_library_without_sources_is_an_error_that_says_where(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        collect(tmp_path)


def test_paragraphs_leave_out_examples_and_fragments():
    text = "One line of\n   text in two.\n\n>>> f(1)\n2\n\nToo short.\n\n"
    assert paragraphs(text) == ["One line of text in two."]


def test_unique_keeps_one_copy_and_drops_contradictions():
    same = passages("Open the given file now.", "open the given FILE now")
    other = Passage("open the given file now!", 1, "b.py:1")
    assert unique(same) == same[:1]
    assert unique([*same, other]) == []


def test_groups_join_near_duplicates_and_one_docstring():
    rows = [
        Passage("Return a copy of the list with items in reverse order", 0, "a.py:1"),
        Passage("Return a copy of the list with items in sorted order", 0, "b.py:1"),
        Passage("Something else that is said about the second one", 0, "b.py:1"),
        Passage("Wait until the given event has been set by others", 0, "c.py:1"),
    ]
    first, second, third, fourth = groups(rows)
    assert first == second == third != fourth


def test_split_keeps_groups_whole():
    names = ["".join(letters) for letters in product("abcdefgh", repeat=3)][:500]
    rows = [Passage(f"all of {name} here", 0, f"a.py:{n // 5}") for n, name in enumerate(names)]
    parts = split(rows)
    homes = [{row.origin for row in part} for part in parts.values()]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 100
    assert sum(map(len, parts.values())) == 500
