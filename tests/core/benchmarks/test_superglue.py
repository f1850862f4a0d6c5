"""Rows and official metrics of each task of SuperGLUE, from small files of its own layout."""

from __future__ import annotations

import re

import datasets
import pytest
import torch
from sklearn import metrics

from gkd_core.benchmarks.superglue.noun_phrases import noun_phrases
from gkd_core.contract.task import BLANK
from gkd_core.errors import DataError
from gkd_core.plugins import registry
from gkd_core.testing import check_task

PASSAGE = "Ann met Bob Lee in Oslo.\n@highlight\nBob flew home"
ARTICLE = {
    "text": PASSAGE,
    "entities": [
        {"start": 0, "end": 2},
        {"start": 8, "end": 14},
        {"start": 19, "end": 22},
        {"start": 36, "end": 38},
    ],
}


def answer(text, start):
    return {"text": text, "start": start, "end": start + len(text) - 1}


BOB = [answer("Bob Lee", 8), answer("Bob", 36)]


def record(number):
    queries = [
        {"query": "It was @placeholder who flew.", "answers": BOB, "idx": 2 * number},
        {"query": "@placeholder saw him.", "answers": [answer("Ann", 0)], "idx": 2 * number + 1},
    ]
    article = ARTICLE | {"text": f"{PASSAGE}, {number}."}
    return {"source": "x", "passage": article, "qas": queries, "idx": number}


def multirc(number):
    questions = [
        {
            "question": f"Who is {name}?",
            "idx": 2 * number + place,
            "answers": [
                {"text": "a cook", "idx": 0, "label": place},
                {"text": "a poet", "idx": 1, "label": 1},
            ],
        }
        for place, name in enumerate(("Ann", "Bob"))
    ]
    return {
        "idx": number,
        "version": 1.1,
        "passage": {"text": f"{number}.", "questions": questions},
    }


def schema(text, noun, pronoun, label, number=0):
    target = {
        "span1_index": noun[0],
        "span1_text": noun[1],
        "span2_index": pronoun[0],
        "span2_text": pronoun[1],
    }
    return {"text": text, "target": target, "idx": number, "label": label}


FIT = "The trophy did not fit in the brown case , because it was too big."


def wsc(number):
    noun = ((1, "trophy"), (6, "The brown case"))[number % 2]
    return schema(f"{FIT} {number}", noun, (11, "it"), number % 2 == 0, number)


def wic(number):
    return {
        "word": "bank",
        "sentence1": f"A bank of {number} clouds.",
        "sentence2": "She robbed banks.",
        "start1": 2,
        "end1": 6,
        "start2": 11,
        "end2": 16,
        "label": number % 2 == 0,
        "idx": number,
    }


def copa(number):
    return {
        "premise": "The cup broke.",
        "choice1": "The man dropped it.",
        "choice2": "I drank from it.",
        "question": ("cause", "effect")[number % 2],
        "label": number // 2 % 2,
        "idx": number,
    }


def boolq(number):
    return {"question": f"is {number} odd", "passage": "Seven is odd.", "label": number % 2 == 1}


def entailment(*names):
    def row(number):
        label = names[number % len(names)]
        return {"premise": "Rain fell.", "hypothesis": f"It rained {number}.", "label": label}

    return row


ROWS = {
    "boolq": boolq,
    "cb": entailment("entailment", "contradiction", "neutral"),
    "copa": copa,
    "multirc": multirc,
    "record": record,
    "rte": entailment("entailment", "not_entailment"),
    "wic": wic,
    "wsc": wsc,
}


@pytest.fixture
def read(folder, load):
    """Read a task from rows made by hand: `read("wsc", kind=...)` -> TaskData."""

    def _read(name, rows=None, **settings):
        test = [ROWS[name](number) for number in range(8)] if rows is None else rows
        train = [ROWS[name](number) for number in range(8, 32)]
        directory = folder(**{"train.jsonl": train, "val.jsonl": test})
        return load(f"superglue/{name}", directory, **settings)

    return _read


def measure(data, split, predictions):
    name = data.source.partition(" ")[0]
    from gkd_core.config.schema import TaskConfig

    task = registry().task(name)(TaskConfig(name=name, kind=data.kind), registry().kinds)
    return task.measure(split, torch.tensor(predictions), data)


@pytest.mark.parametrize("kind", [None, "masked-cloze"])
@pytest.mark.parametrize("name", ROWS)
def test_tasks_pass_the_check_of_tasks(read, name, kind, folder):
    read(name)
    task = registry().task(f"superglue/{name}")
    check_task(task, settings={"train": str(folder()), "kind": kind})


def test_boolq_reads_the_question_and_the_passage(read):
    data = read("boolq")
    assert (data.test.text[1], data.test.pair[1]) == ("is 1 odd", "Seven is odd.")
    assert (data.classes, data.test.labels[:2]) == (("false", "true"), [0, 1])
    cloze = read("boolq", kind="masked-cloze")
    assert cloze.test.text[1] == f"Seven is odd. Question: is 1 odd? Answer: {BLANK}."
    assert (cloze.test.pair, cloze.classes) == (None, ("No", "Yes"))
    assert cloze.test.labels == data.test.labels


def test_copa_reads_choices_after_the_question_or_within_the_sentence(read):
    data = read("copa")
    assert data.test.text[:2] == [
        "The cup broke. What was the cause?",
        "The cup broke. What happened as a result?",
    ]
    assert data.test.pair[0] == ["The man dropped it.", "I drank from it."]
    assert (data.test.labels[:4], data.classes) == ([0, 0, 1, 1], ("0", "1"))
    cloze = read("copa", kind="causal-cloze")
    assert cloze.test.text[:2] == [
        f"The cup broke because {BLANK}.",
        f"The cup broke so {BLANK}.",
    ]
    assert cloze.test.pair[0] == ["the man dropped it", "I drank from it"]


def test_score_of_cb_is_the_mean_of_macro_f1_and_accuracy(read):
    data = read("cb")
    predicted = [0, 1, 2, 1, 1, 0, 0, 2]
    found = measure(data, data.test, predicted)
    assert found["accuracy"] == metrics.accuracy_score(data.test.labels, predicted)
    f1 = metrics.f1_score(data.test.labels, predicted, average="macro")
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["score"] == pytest.approx((f1 + found["accuracy"]) / 2)


def test_multirc_is_measured_over_all_answers_and_by_question(read):
    data = read("multirc")
    assert len(data.test) == 32
    assert data.test.pair[:2] == ["Who is Ann? a cook", "Who is Ann? a poet"]
    assert data.test.group[:4] == ["0-0", "0-0", "0-1", "0-1"]
    assert data.test.labels[:4] == [0, 1, 1, 1]
    passages = [{g.partition("-")[0] for g in s.group} for s in (data.train, data.validation)]
    assert not passages[0] & passages[1]
    # Of each passage the first question is right, and one answer to the second is missed.
    predicted = [0, 1, 0, 1] * 8
    found = measure(data, data.test, predicted)
    f1 = metrics.f1_score(data.test.labels, predicted)
    assert found["f1a"] == pytest.approx(f1) == pytest.approx(0.8)
    assert found["exact_match"] == 0.5
    assert found["score"] == pytest.approx(0.65)
    cloze = read("multirc", kind="masked-cloze")
    assert cloze.test.text[0] == f"0. Question: Who is Ann? Is it a cook? {BLANK}."
    assert measure(cloze, cloze.test, predicted) == found


def test_record_has_a_choice_for_each_entity_and_several_right_ones(read):
    data = read("record")
    filled = [f"It was {entity} who flew." for entity in ("Ann", "Bob Lee", "Oslo", "Bob")]
    assert data.test.text[0] == "Ann met Bob Lee in Oslo.\n- Bob flew home, 0."
    assert data.test.pair[0] == filled
    assert (data.test.labels[:2], data.classes) == ([1, 0], ("0", "1", "2", "3"))
    assert len(data.test) == 16
    # In training, each right entity is a row, among those that are not right.
    rows = [row for row, group in enumerate(data.train.group) if group == "9-18"]
    rows = rows or [row for row, group in enumerate(data.train.group) if group == "10-20"]
    assert [data.train.pair[row] for row in rows] == [
        [filled[0], filled[1], filled[2]],
        [filled[0], filled[2], filled[3]],
    ]
    assert [data.train.labels[row] for row in rows] == [1, 2]
    cloze = read("record", kind="masked-cloze")
    assert cloze.test.text[0].endswith(f"\n- Bob flew home, 0. It was {BLANK} who flew.")
    assert cloze.test.pair[0] == ["Ann", "Bob Lee", "Oslo", "Bob"]
    assert cloze.test.labels == data.test.labels


def test_record_compares_words_with_the_best_answer(read):
    data = read("record", [record(0)])
    assert measure(data, data.test, [3, 0]) == {"f1": 1.0, "exact_match": 1.0, "score": 1.0}
    found = measure(data, data.test, [0, 0])
    assert found == {"f1": 0.5, "exact_match": 0.5, "score": 0.5}
    only = record(0)
    only["qas"][0]["answers"] = BOB[:1]
    data = read("record", [only])
    # "Bob" shares one word with "Bob Lee": F1 is 2 * 1 / (1 + 2).
    assert measure(data, data.test, [3, 0]) == pytest.approx(
        {"f1": (2 / 3 + 1) / 2, "exact_match": 0.5, "score": (5 / 6 + 1 / 2) / 2}
    )


def test_answers_of_record_change_the_hash_of_the_rows(read):
    other = record(0)
    other["qas"][0]["answers"] = [answer("Bob Lee", 8), answer("bob lee", 8)]
    one, two = read("record", [record(0)]), read("record", [other])
    assert one.test.pair == two.test.pair
    assert one.rows_hash != two.rows_hash


def test_wic_gives_the_places_of_the_word(read):
    data = read("wic")
    assert data.test.spans[0] == [(0, 2, 6), (1, 11, 16)]
    assert (data.kind, data.classes) == ("span-classification", ("false", "true"))
    assert data.test.labels[:2] == [1, 0]
    cloze = read("wic", kind="masked-cloze")
    assert cloze.test.text[0] == (
        f'"A bank of 0 clouds." / "She robbed banks." Similar sense of "bank"? {BLANK}.'
    )
    assert cloze.test.spans is None


@pytest.mark.parametrize(
    ("text", "noun", "pronoun", "places"),
    [
        (FIT, (1, "trophy"), (11, "it"), ("trophy", "it")),
        (FIT, (6, "The brown case"), (11, "it"), ("the brown case", "it")),
        (FIT, (7, "brown case."), (12, "it"), ("brown case", "it")),
        ('"Good for him," he said.', (0, "Good"), (2, 'him,"'), ("Good", "him")),
        ("Pam's parents came. They left.", (0, "Pam's parents"), (3, "They"), None),
        ("Ann 's dog saw Bob, and he ran", (2, "Ann\n's dog"), (6, "he"), ("Ann 's dog", "he")),
        ("If theyscold her, they stop", (1, "they scold"), (3, "they"), ("theyscold", "they")),
        (
            "Kamenev, Ivan and Zinoviev",
            (0, "Kamenev and Zinoviev"),
            (1, "Ivan"),
            ("Kamenev", "Ivan"),
        ),
    ],
)
def test_spans_of_wsc_are_found_by_their_words(read, text, noun, pronoun, places):
    data = read("wsc", [schema(text, noun, pronoun, True), wsc(1)])
    places = places or (noun[1], pronoun[1])
    assert tuple(text[start:end] for _, start, end in data.test.spans[0]) == places
    assert data.test.labels == [1, 0]


def test_a_span_of_wsc_that_is_elsewhere_is_refused(read):
    rows = [wsc(0), schema(FIT, (0, "big"), (11, "it"), True)]
    with pytest.raises(
        DataError, match=r"val.jsonl:2: span1_text is 'big', but word 0 of the text"
    ):
        read("wsc", rows)


def test_candidates_of_wsc_compete_with_the_noun_phrase(read):
    data = read("wsc", kind="masked-cloze")
    prompt = f" In the text above, the pronoun 'it' refers to {BLANK}."
    assert data.test.text[0] == f"{FIT} 0{prompt}"
    assert data.test.pair[0] == ["trophy", "the brown case"]
    assert data.test.pair[1] == ["the brown case", "The trophy"]
    assert data.test.labels[:2] == [0, 1]
    assert set(data.train.labels) == {0}
    # 5 of 8 are right: the first two and three of the others.
    found = measure(data, data.test, [0, 1, 1, 0, 0, 1, 0, 0])
    assert found == {"accuracy": 5 / 8}
    own = schema(FIT, (1, "trophy"), (11, "it"), True) | {"candidates": ["a lid", "the trophy"]}
    assert read("wsc", [own, wsc(1)], kind="masked-cloze").test.pair[0] == ["trophy", "a lid"]
    alone = schema("Ann said she left", (0, "Ann"), (2, "she"), True)
    made = read("wsc", [alone, wsc(1)], kind="masked-cloze")
    assert made.test.pair[0] == ["Ann", "something else"]


def test_noun_phrases_are_names_and_what_follows_a_determiner():
    text = "The city councilmen refused the demonstrators a permit because Mary and Bob feared it."
    assert noun_phrases(text) == [
        "The city councilmen",
        "the demonstrators",
        "a permit",
        "Mary",
        "Mary and Bob",
        "Bob",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sack of potatoes fell.", ["The sack", "The sack of potatoes"]),
        ("the end of the old road of", ["the end", "the end of the old road", "the old road"]),
        ("Pam's parents came home", ["Pam", "Pam's parents"]),
        ("the tree broke the fence of", ["the tree", "the fence"]),
        ("the of a Ann's", ["a Ann", "Ann"]),
        ("", []),
    ],
)
def test_noun_phrases_go_on_with_of_and_end_before_a_verb(text, found):
    assert noun_phrases(text) == found


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("copa", {"question": "why"}, "'question' is 'why', neither 'cause' nor 'effect'"),
        ("wic", {"end1": 99}, "there is no word from start1 = 2 to end1 = 99 of 'sentence1'"),
        ("wic", {"start2": "a"}, "'start2' is 'a', not a whole number"),
        ("multirc", {"passage": 3}, "'passage' is 3, not an object"),
        ("record", {"qas": {}}, "'qas' is not a list of objects"),
        (
            "record",
            {"qas": [{"query": "no blank", "answers": BOB, "idx": 0}]},
            "'query' has no @placeholder",
        ),
        (
            "record",
            {"qas": [{"query": "@placeholder", "answers": [answer("Eve", 0)], "idx": 0}]},
            r"no answer of \['Eve'\] is among the entities",
        ),
        (
            "record",
            {"passage": ARTICLE | {"entities": [{"start": 5, "end": 400}]}},
            "an entity from 5 to 400 is not within the passage",
        ),
    ],
)
def test_bad_rows_are_named(read, name, change, message):
    with pytest.raises(DataError, match=f"val.jsonl:2: {message}"):
        read(name, [ROWS[name](0), ROWS[name](1) | change])


def on_the_hub(name, row):
    """Return a row of a file as the rows that the hub has for it."""
    if name == "multirc":
        for question in row["passage"]["questions"]:
            for one in question["answers"]:
                yield {
                    "paragraph": row["passage"]["text"],
                    "question": question["question"],
                    "answer": one["text"],
                    "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": 0},
                    "label": ("False", "True")[one["label"]],
                }
    elif name == "record":
        for query in row["qas"]:
            yield {
                "passage": row["passage"]["text"],
                "query": query["query"],
                "entities": ["Ann", "Bob Lee", "Oslo", "Bob"],
                "answers": [one["text"] for one in query["answers"]],
                "idx": {"passage": row["idx"], "query": query["idx"]},
            }
    elif name == "wsc":
        yield {**row["target"], "text": row["text"], "label": str(row["label"])}
    else:
        yield row | {"label": ("choice1", "choice2")[row["label"]]}


@pytest.mark.parametrize("name", ["copa", "multirc", "record", "wsc"])
def test_rows_of_the_hub_are_those_of_the_files(read, load, monkeypatch, name):
    opened = []

    def load_dataset(*place):
        opened.append(place)
        parts = {"train": range(8, 32), "validation": range(8)}
        rows = {
            part: [made for number in numbers for made in on_the_hub(name, ROWS[name](number))]
            for part, numbers in parts.items()
        }
        return {part: datasets.Dataset.from_list(found) for part, found in rows.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = read(name)
    assert opened == []
    found = load(f"superglue/{name}", None)
    assert opened == [("aps/super_glue", "wsc.fixed" if name == "wsc" else name)]
    assert (found.test, found.train, found.classes) == (
        expected.test,
        expected.train,
        expected.classes,
    )


GRID = [
    pytest.param(name, form, marks=[] if name in quick else pytest.mark.exhaustive)
    for form, quick in (
        (None, ("wsc",)),
        ("masked-cloze", ("record",)),
        ("causal-cloze", ("copa",)),
    )
    for name in ROWS
]


@pytest.mark.parametrize(("name", "form"), GRID)
def test_a_student_is_trained_on_a_task_by_name(read, folder, start, world, invoke, name, form):
    read(name)
    student = world / "lm-decoder" if form == "causal-cloze" else start
    arguments = ["--task", f"superglue/{name}", "--data", folder(), "--student", student]
    settings = ["training.steps=2", "training.batch_size=4", "output.tensorboard=false"]
    settings += [] if form is None else [f"task.kind={form}"]
    settings += ["task.max_length=16"] if name == "record" else []
    given = [part for one in settings for part in ("--set", one)]
    done = invoke("run", "--method", "hard", *arguments, *given, "--output", "run")
    assert done.code == 0, done.err
    metric = registry().task(f"superglue/{name}").metric
    counted = {"multirc": 32, "record": 16}.get(name, 8)
    measured = "accuracy" if metric is None else metric.name
    assert f"{measured} on {counted} test rows" in done.out
    if name == "record":
        cut = r"cut at 16 tokens \(task.max_length\): \d+ of \d+ texts \([\d.]+%\)"
        assert len(re.findall(cut, " ".join(done.out.split()))) == 2, "training and test rows"


def test_explain_shows_rows_metric_and_classes(read, folder, start, invoke):
    read("cb")
    data = ("--task", "superglue/cb", "--data", folder())
    done = invoke("explain", "hard", *data, "--student", start)
    assert done.code == 0, done.err
    assert "rows       22 train, 2 validation, 8 test" in done.out
    assert "metric     score" in done.out
    assert "classes    entailment, contradiction, neutral" in done.out
