"""How rows are read, tokenized and predicted, kind by kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.batch import IGNORE
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.files import Files
from gkd_core.errors import DataError
from gkd_core.plugins import registry

KINDS = registry().kinds


def load(path, rows, model_kind=None, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(path), "validation": str(path)} | settings
    return Files(TaskConfig(**given), KINDS, model_kind=model_kind).load("masked-lm", 1)


def batch_of(kind, encoded, tokenizer, rows):
    return Collator(tokenizer, KINDS[kind], 0.15, 1).collate(encoded, rows, 0)


# Which kind it is


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "labels": ["x", "y"]}, "multi-label"),
        ({"text": "a", "toxic": 0, "rude": 1}, "multi-label"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "token-classification"),
        ({"question": "a", "choices": ["x", "y"], "answer": 1}, "multiple-choice"),
        (
            {"sent1": "a", "sent2": "b", "ending0": "x", "ending1": "y", "label": 1},
            "multiple-choice",
        ),
        (
            {"question": "a", "context": "b c", "answers": {"text": ["c"], "answer_start": [2]}},
            "span-extraction",
        ),
        ({"premise": "a", "hypothesis": "b", "label": "x"}, "classification"),
        ({"question": "a", "sentence": "b", "label": 0}, "classification"),
    ],
)
def test_columns_decide_the_kind(tmp_path, row, kind):
    other = row | {"label": "y"} if row.get("label") in ("x", 0) else row
    assert load(tmp_path / "rows.jsonl", [row, other] * 2).kind == kind


@pytest.mark.parametrize(
    ("made_for", "kind"),
    [
        (None, "classification"),
        ("regression", "regression"),
        ("classification", "classification"),
        ("token-classification", "classification"),
    ],
)
def test_the_model_decides_where_rows_leave_it_open(tmp_path, made_for, kind):
    rows = [{"text": f"text {n}", "label": n % 4} for n in range(8)]
    assert load(tmp_path / "rows.jsonl", rows, made_for).kind == kind


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 3}, "classification"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi-label"),
    ],
)
def test_a_model_says_what_it_was_made_for(changes, kind):
    from transformers import BertConfig

    config = BertConfig(architectures=["BertForSequenceClassification"], **changes)
    assert [name for name, one in KINDS.items() if one.made(config)] == [kind]
    config = BertConfig(architectures=["BertForTokenClassification"])
    assert [name for name, one in KINDS.items() if one.made(config)] == ["token-classification"]


# Multi-label


def test_lists_of_labels_become_marks(tmp_path):
    rows = [{"text": "a", "labels": ["y", "x"]}, {"text": "b", "labels": []}]
    data = load(tmp_path / "rows.jsonl", [*rows, {"text": "c", "labels": ["z"]}])
    assert data.classes == ("x", "y", "z")
    assert data.train.labels == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_columns_of_marks_are_classes_in_their_order(tmp_path):
    rows = [{"text": "a", "rude": 1, "bad": 0}, {"text": "b", "rude": True, "bad": "1"}]
    data = load(tmp_path / "rows.jsonl", rows)
    assert data.classes == ("rude", "bad")
    assert data.train.labels == [[1, 0], [1, 1]]


def test_marks_follow_the_order_of_the_teacher():
    assert KINDS["multi-label"].renumber([1, 0, 0], [2, 0, 1]) == [0, 0, 1]


def test_unknown_labels_are_refused_with_their_row(tmp_path):
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "a", "labels": ["q"]}) + "\n")
    rows = [{"text": "a", "labels": ["y", "x"]}] * 2
    with pytest.raises(DataError, match=r"v.jsonl:1: label 'q' never occurs in training"):
        load(tmp_path / "rows.jsonl", rows, validation=str(tmp_path / "v.jsonl"))


@pytest.mark.parametrize(
    ("column", "bad", "told"),
    [
        ("labels", [None], "label 'None' never occurs"),
        ("labels", "", "the labels are '', expected a list"),
        ("labels", [["x"]], "label .* never occurs in training"),
        ("ner_tags", [None], "tag 'None' never occurs"),
        ("ner_tags", [""], "tag '' never occurs"),
    ],
)
def test_labels_that_are_none_are_told_with_their_row(tmp_path, column, bad, told):
    words = {"text": "a"} if column == "labels" else {"tokens": ["a"]}
    good = [words | {column: [name]} for name in ("x", "y")]
    kind = "multi-label" if column == "labels" else "token-classification"
    with pytest.raises(DataError, match=rf"rows.jsonl:3: {told}"):
        load(tmp_path / "rows.jsonl", [*good, words | {column: bad}], kind=kind)


# Token classification


def test_first_tokens_carry_the_tags(tokenizer):
    kind = KINDS["token-classification"]
    # The pre-tokenizer splits "anna-anna" into three tokens of one word.
    split = Split([["anna-anna", "saw", "paris"], ["oslo"]], labels=[[1, 0, 2], [2]])
    encoded = kind.encode(split, tokenizer, 16, ("O", "B-PER", "B-LOC"))
    batch = batch_of("token-classification", encoded, tokenizer, [0, 1])
    assert batch.labels.tolist() == [
        [IGNORE, 1, IGNORE, IGNORE, 0, 2, IGNORE],
        [IGNORE, 2, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.targets.count == 4


def test_words_beyond_the_last_token_count_as_missed(tokenizer):
    kind = KINDS["token-classification"]
    split = Split([["anna", "saw", "paris", "oslo"]], labels=[[1, 0, 2, 2]])
    encoded = kind.encode(split, tokenizer, 4, ("O", "B-PER", "B-LOC"))
    assert encoded.num_truncated == 1
    batch = batch_of("token-classification", encoded, tokenizer, [0])
    logits = torch.zeros(1, 4, 3)
    logits[0, 1, 1] = logits[0, 2, 0] = 1.0
    found = kind.summarize([kind.observe(logits, batch)], encoded)
    assert found.predictions == [["B-PER", "O", "O", "O"]]
    assert found.metrics["recall"] == pytest.approx(1 / 3)
    assert found.metrics["precision"] == 1.0


def test_conll_files_are_read(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("-DOCSTART- -X- O O\n\nanna NNP B-NP B-PER\nsaw VBD O O\n\noslo NNP O B-LOC\n")
    config = TaskConfig(train=str(path), validation=str(path))
    data = Files(config, KINDS).load("masked-lm", 1)
    assert data.kind == "token-classification"
    assert data.train.text == [["anna", "saw"], ["oslo"]]
    assert data.classes == ("B-LOC", "B-PER", "O")
    assert data.train.labels == [[1, 2], [0]]


def test_as_many_tags_as_words_are_needed(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a"], "tags": ["O", "O"]}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: there are 1 words and 2 tags"):
        load(tmp_path / "rows.jsonl", rows)


# Multiple choice


@pytest.mark.parametrize(
    ("row", "pairs", "right"),
    [
        (
            {"sent1": "a b", "sent2": "she", "ending0": "x", "ending1": "y", "label": 1},
            ("a b", ["she x", "she y"]),
            1,
        ),
        (
            {
                "question": "q",
                "choices": {"label": ["A", "B"], "text": ["x", "y"]},
                "answerKey": "B",
            },
            ("q", ["x", "y"]),
            1,
        ),
        (
            {"article": "t", "question": "q", "options": ["x", "y", "z"], "answer": "C"},
            ("t", ["q x", "q y", "q z"]),
            2,
        ),
        ({"premise": "p", "choice1": "x", "choice2": "y", "label": 0}, ("p", ["x", "y"]), 0),
        ({"ctx": "c", "endings": ["x", "y"], "label": "1"}, ("c", ["x", "y"]), 1),
    ],
)
def test_usual_columns_of_choices(tmp_path, row, pairs, right):
    data = load(tmp_path / "rows.jsonl", [row] * 2, kind="multiple-choice")
    assert (data.train.text[0], data.train.pair[0]) == pairs
    assert data.train.labels == [right] * 2
    assert data.classes == tuple(map(str, range(len(pairs[1]))))


def test_choices_are_sequences_and_rows_stay_rows(tokenizer):
    kind = KINDS["multiple-choice"]
    split = Split(["the car", "the red"], [["red", "blue car"], ["no", "yes"]], [0, 1])
    encoded = kind.encode(split, tokenizer, 16, ("0", "1"))
    assert len(encoded) == 2
    assert encoded.lengths.tolist() == [7, 6]
    batch = batch_of("multiple-choice", encoded, tokenizer, [1, 0])
    assert batch.inputs["input_ids"].shape == (4, 7)
    assert batch.labels.tolist() == [1, 0]
    assert (batch.rows.tolist(), batch.samples.count, batch.targets.count) == ([1, 0], 2, 2)


def test_rows_may_have_different_numbers_of_choices(tmp_path):
    rows = [{"question": "q", "choices": list("xyz"[:n]), "label": 0} for n in (2, 3, 1)]
    data = load(tmp_path / "rows.jsonl", rows)
    assert data.train.pair == [["x", "y"], ["x", "y", "z"], ["x"]]
    assert data.classes == ("0", "1", "2")


def test_the_right_choice_is_one_of_its_row(tmp_path):
    rows = [{"question": "q", "choices": list("xyz"[:n]), "label": 2} for n in (3, 2)]
    with pytest.raises(DataError, match="the answer 2 is none of the 2 choices"):
        load(tmp_path / "rows.jsonl", rows)


# Span extraction


def span(tokenizer, context, answers, max_length=16, unanswerable=False):
    kind = KINDS["span-extraction"]
    split = Split(["where is the car ?"], [context], [answers])
    classes = ("answer", "no answer") if unanswerable else ()
    return kind, kind.encode(split, tokenizer, max_length, classes)


def test_windows_overlap_and_know_their_answers(tokenizer):
    words = ["went"] * 12 + ["paris"] + ["road"] * 3
    context = " ".join(words)
    start = context.index("paris")
    _, encoded = span(tokenizer, context, {"text": ["paris"], "start": [start]})
    windows = [encoded.row(number)["input_ids"] for number in range(len(encoded))]
    assert len(windows) > 1
    assert encoded.extra["questions"].tolist() == [0] * len(windows)
    assert all(len(ids) <= 16 for ids in windows)
    paris = tokenizer.convert_tokens_to_ids("paris")
    for ids, (first, last) in zip(windows, encoded.labels, strict=True):
        assert (first == last > 0) == (paris in ids)
        assert first == 0 or ids[first] == paris
    texts = {context[o[0] : o[1]] for o in encoded.extra["places"] if o[0] >= 0}
    assert texts == {"went", "paris", "road"}


@pytest.mark.parametrize(("unanswerable", "expected"), [(False, "lima"), (True, "")])
def test_the_likeliest_window_answers_unless_nothing_is_likelier(tokenizer, unanswerable, expected):
    context = " ".join(["went"] * 9 + ["lima"] + ["road"] * 5)
    answers = {"text": ["lima"], "start": [context.index("lima")]}
    kind, encoded = span(tokenizer, context, answers, unanswerable=unanswerable)
    rows = list(range(len(encoded)))
    batch = batch_of("span-extraction", encoded, tokenizer, rows)
    logits = torch.full((len(rows), 2, batch.inputs["input_ids"].shape[1]), -9.0)
    logits[:, :, 0] = 2.0
    lima = tokenizer.convert_tokens_to_ids("lima")
    for row in rows:
        at = batch.inputs["input_ids"][row] == lima
        logits[row, :, at.nonzero().flatten()] = 1.0
    found = kind.summarize([kind.observe(logits, batch)], encoded)
    assert found.predictions == [expected]
    assert found.metrics["exact_match"] == (100.0 if expected else 0.0)


def test_padding_has_no_probability(tokenizer):
    kind = KINDS["span-extraction"]
    mask = torch.tensor([[1, 1, 1, 0]])

    class Output:
        start_logits = torch.zeros(1, 4)
        end_logits = torch.ones(1, 4)

    logits = kind.logits(Output(), {"attention_mask": mask})
    assert logits.shape == (1, 2, 4)
    assert logits.softmax(-1)[0, 0].tolist() == pytest.approx([1 / 3] * 3 + [0])


def test_answers_must_stand_where_they_say(tmp_path):
    answers = {"text": ["c"], "answer_start": [0]}
    with pytest.raises(DataError, match="the answer 'c' is not at character 0"):
        load(tmp_path / "rows.jsonl", [{"question": "a", "context": "b c", "answers": answers}] * 2)


# Embedding


def test_embeddings_are_judged_by_the_cosines_of_pairs(tokenizer):
    kind = KINDS["embedding"]
    split = Split(["red", "blue", "green"], ["car", "car", "tree"], [5.0, 1.0, 3.0])
    encoded = kind.encode(split, tokenizer, 8)
    assert len(encoded) == 6
    batch = batch_of("embedding", encoded, tokenizer, range(6))
    vectors = torch.tensor([[1, 0], [1, 0], [1, 0], [-1, 0], [1.0, 0], [0, 1]])
    found = kind.summarize([kind.observe(vectors, batch)], encoded)
    assert found.predictions.tolist() == pytest.approx([1, -1, 0])
    assert found.metrics["spearman"] == pytest.approx(1)
    assert found.metrics["pearson"] == pytest.approx(1)


def test_a_vector_is_the_mean_over_the_tokens():
    class Output:
        last_hidden_state = torch.tensor([[[1.0, 2], [3, 4], [100, 100]]])

    found = KINDS["embedding"].logits(Output(), {"attention_mask": torch.tensor([[1, 1, 0]])})
    assert found.tolist() == [[2.0, 3.0]]


def test_embeddings_need_scores_to_be_judged_by(tmp_path):
    with pytest.raises(DataError, match="no pairs with a score"):
        load(tmp_path / "rows.jsonl", [{"text": "a"}] * 2, kind="embedding")


def test_planned_rows_have_the_shapes_of_real_ones(tokenizer):
    for name in ("multi-label", "token-classification", "multiple-choice", "span-extraction"):
        encoded = KINDS[name].planned(2, 5, 7, ("0", "1", "2"))
        assert len(encoded) == 2
        assert encoded.lengths.tolist() == [5, 5]
        batch = batch_of(name, encoded, tokenizer, [0, 1])
        assert isinstance(encoded.labels, np.ndarray)
        assert batch.targets.count > 0
