"""Rows and official metrics of each task of GLUE, from files of 20 rows in its own layout."""

from __future__ import annotations

import logging

import datasets
import pytest
import torch
from scipy import stats
from sklearn import metrics

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import BLANK
from gkd_core.errors import DataError
from gkd_core.plugins import registry
from gkd_core.testing import check_task

MNLI = [
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
]
STSB = [
    *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
    *("sentence1", "sentence2", "score"),
]
NLI = ("entailment", "neutral", "contradiction")


def mnli(n):
    return [
        n,
        1,
        f"{n}e",
        "fiction",
        "( )",
        "( )",
        "(ROOT)",
        "(ROOT)",
        f'He "said {n}.',
        "So.",
        "",
        NLI[n % 3],
    ]


LAYOUTS = {
    "cola": ([], lambda n: ["gj04", n % 2, "*" if n % 2 == 0 else "", f'They "sleep {n}.']),
    "sst2": (["sentence", "label"], lambda n: [f"a good film {n} ", n % 2]),
    "mrpc": (
        ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        lambda n: [n % 2, 100 + n, 200 + n, f'"It rose {n}.', f"It fell {n}."],
    ),
    "stsb": (STSB, lambda n: [n, "news", "f", 2012, n, "none", "none", f"A {n}", f"B {n}", n / 5]),
    "qqp": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        lambda n: [n, 2 * n, 2 * n + 1, f"Why {n}?", f'Why "not {n}?', n % 2],
    ),
    "mnli": (MNLI, mnli),
    "qnli": (
        ["index", "question", "sentence", "label"],
        lambda n: [n, f"When {n}?", f"In {n}.", ("entailment", "not_entailment")[n % 2]],
    ),
    "rte": (
        ["index", "sentence1", "sentence2", "label"],
        lambda n: [n, f"It rained {n}.", "It was wet.", ("entailment", "not_entailment")[n % 2]],
    ),
    "wnli": (
        ["index", "sentence1", "sentence2", "label"],
        lambda n: [n, f"Ann saw Bob {n}. She left.", "Ann left.", n % 2],
    ),
}
"""The first line of each task's files, and a row of them."""

FIRST = {
    "cola": ('They "sleep 20.', None, 0),
    "sst2": ("a good film 20 ", None, 0),
    "mrpc": ('"It rose 20.', "It fell 20.", 0),
    "stsb": ("A 20", "B 20", 4.0),
    "qqp": ("Why 20?", 'Why "not 20?', 0),
    "mnli": ('He "said 20.', "So.", 2),
    "qnli": ("When 20?", "In 20.", 0),
    "rte": ("It rained 20.", "It was wet.", 0),
    "wnli": ("Ann saw Bob 20. She left.", "Ann left.", 0),
}
"""Text, second text and label of the first test row."""


def table(name, numbers, row=None):
    header, made = LAYOUTS[name]
    rows = [*([header] if header else []), *((row or made)(number) for number in numbers)]
    return "".join("\t".join(map(str, fields)) + "\n" for fields in rows)


@pytest.fixture
def files(folder):
    """Write the files of a task: `files("qqp")` -> directory."""

    def _files(name, **more):
        tests = ["dev_matched.tsv", "dev_mismatched.tsv"] if name == "mnli" else ["dev.tsv"]
        made = {test: table(name, range(20, 21 + len(tests))) for test in tests}
        return folder(**{"train.tsv": table(name, range(20))} | made | more)

    return _files


def measure(name, split, predictions, data):
    task = registry().task(name)(TaskConfig(name=name), registry().kinds)
    return task.measure(split, torch.tensor(predictions), data)


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_in_their_own_layout_are_read(files, load, name):
    directory = files(name)
    data = load(f"glue/{name}", directory)
    pair = None if data.test.pair is None else data.test.pair[0]
    assert (data.test.text[0], pair, data.test.labels[0]) == FIRST[name]
    assert len(data.train) + len(data.validation) == 20
    assert data.kind == ("regression" if name == "stsb" else "classification")
    check_task(registry().task(f"glue/{name}"), settings={"train": str(directory)})


def test_mnli_is_tested_on_both_validation_files(files, load):
    data = load("glue/mnli", files("mnli"))
    assert data.test.group == ["matched"] * 3 + ["mismatched"] * 3
    assert data.test.labels == [2, 0, 1] * 2
    found = measure("glue/mnli", data.test, [2, 0, 1, 2, 1, 1], data)
    assert found == {"accuracy_matched": 1.0, "accuracy_mismatched": pytest.approx(2 / 3)}
    assert data.validation.group is None
    assert measure("glue/mnli", data.validation, data.validation.labels, data) == {}


LABELS = [1, 0, 1, 1, 0, 0, 1, 0, 1, 1]
FOUND = [1, 0, 0, 1, 1, 0, 1, 0, 0, 1]


@pytest.fixture
def judged(files, load):
    """Metrics of fixed predictions on ten test rows: `judged("cola")`."""

    def _judged(name, labels=LABELS, predictions=FOUND):
        data = load(f"glue/{name}", files(name))
        size = len(labels)
        split = type(data.test)(["a"] * size, data.test.pair and ["b"] * size, labels)
        return measure(f"glue/{name}", split, predictions, data)

    return _judged


def test_cola_is_measured_by_matthews_correlation(judged):
    expected = metrics.matthews_corrcoef(LABELS, FOUND)
    assert judged("cola") == {"matthews": pytest.approx(expected)}
    assert judged("cola", LABELS, [1] * 10) == {"matthews": 0.0}
    assert metrics.matthews_corrcoef(LABELS, [1] * 10) == 0.0


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_paraphrases_are_measured_by_f1_and_accuracy(judged, name):
    f1, right = metrics.f1_score(LABELS, FOUND), metrics.accuracy_score(LABELS, FOUND)
    assert judged(name) == pytest.approx({"f1": f1, "accuracy": right, "score": (f1 + right) / 2})


def test_f1_is_that_of_the_same_class_in_any_order_of_the_classes(files, load):
    from dataclasses import replace

    data = load("glue/mrpc", files("mrpc"))
    turned = replace(data, classes=("equivalent", "not_equivalent"))
    split = replace(data.test, text=["a"] * 10, pair=["b"] * 10, labels=[1 - n for n in LABELS])
    found = measure("glue/mrpc", split, [1 - n for n in FOUND], turned)
    assert found["f1"] == pytest.approx(metrics.f1_score(LABELS, FOUND))


def test_stsb_is_measured_by_two_correlations(judged):
    labels = [0.0, 1.2, 5.0, 3.4, 3.4, 2.0, 4.8, 0.6]
    found = [0.3, 0.9, 3.5, 4.1, 2.8, 2.8, 4.4, 1.0]
    pearson = stats.pearsonr(labels, found).statistic
    spearman = stats.spearmanr(labels, found).statistic
    expected = {"pearson": pearson, "spearman": spearman, "score": (pearson + spearman) / 2}
    assert judged("stsb", labels, found) == pytest.approx(expected)


def test_microsofts_files_of_mrpc_are_divided_as_in_glue(folder, load):
    directory = folder(
        **{
            "msr_paraphrase_train.txt": table("mrpc", range(20)),
            "msr_paraphrase_test.txt": table("mrpc", range(20, 24)),
        }
    )
    assert load("glue/mrpc", directory).test.pair == [f"It fell {n}." for n in range(20, 24)]
    folder(**{"dev_ids.tsv": "#1 ID\t#2 ID\n103\t203\n105\t205\n"})
    data = load("glue/mrpc", directory)
    assert data.test.pair == ["It fell 3.", "It fell 5."]
    assert len(data.train) + len(data.validation) == 18


def test_broken_lines_of_qqp_are_left_out_with_a_warning(files, load, caplog):
    broken = table("qqp", range(20)) + "20\t40\t41\tWhy?\n21\tand so on\n"
    directory = files("qqp", **{"train.tsv": broken})
    with caplog.at_level(logging.WARNING):
        data = load("glue/qqp", directory)
    assert len(data.train) + len(data.validation) == 20
    assert "train.tsv:22: 2 rows have too few or too many fields" in caplog.text


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("cola", "a sentence\t1\n", "dev.tsv:1: 2 fields, but a row has 4"),
        ("sst2", "sentence\tlabel\nfine\t2\n", "dev.tsv:2: the label is '2', which is not one of"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t7\n", "the similarity is 7, not between 0"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", "'label' is 'high', not a number"),
        ("rte", "sentence1\tsentence2\tlabel\na\tb\n", "dev.tsv:2: 2 fields, but the header has 3"),
        ("qnli", "sentence\tlabel\na\t0\n", "dev.tsv:2: there is no 'question', which rows of"),
    ],
)
def test_bad_rows_are_named(files, load, name, line, message):
    with pytest.raises(DataError, match=message):
        load(f"glue/{name}", files(name, **{"dev.tsv": line}))


def test_patterns_have_one_blank_and_a_word_for_each_class():
    found = {name: task for name, task in registry().tasks.items() if "/" in name}
    assert len(found) == 17
    for name, task in found.items():
        if name == "glue/stsb":
            assert task.forms() == ("regression",)
            continue
        assert task.forms()[1:] == ("masked-cloze", "causal-cloze")
        assert len(task.words) in (len(task.classes), 0)


def test_a_cloze_has_the_texts_around_its_blank(files, load):
    data = load("glue/qqp", files("qqp"), kind="masked-cloze")
    assert data.test.text[0] == f'Why 20? Does it mean the same as "Why "not 20"? {BLANK}.'
    assert (data.test.pair, data.classes) == (None, ("No", "Yes"))
    found = measure_cloze("glue/qqp", data)
    assert found["f1"] == 1.0


def measure_cloze(name, data):
    task = registry().task(name)(TaskConfig(name=name, kind="masked-cloze"), registry().kinds)
    return task.measure(data.test, torch.tensor(data.test.labels), data)


def test_both_validation_splits_of_mnli_come_from_the_hub(load, monkeypatch):
    def load_dataset(*place):
        assert place == ("nyu-mll/glue", "mnli")
        features = datasets.Features(
            {
                "premise": datasets.Value("string"),
                "hypothesis": datasets.Value("string"),
                "label": datasets.ClassLabel(names=list(NLI)),
            }
        )
        sizes = {"train": 20, "validation_matched": 3, "validation_mismatched": 2}
        return {
            part: datasets.Dataset.from_list(
                [
                    {"premise": f"{part} {n}", "hypothesis": "So.", "label": n % 3}
                    for n in range(size)
                ],
                features=features,
            )
            for part, size in sizes.items()
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("glue/mnli", None)
    assert data.test.group == ["matched"] * 3 + ["mismatched"] * 2
    assert data.test.labels == [0, 1, 2, 0, 1]
    assert len(data.train) == 18
