"""What the tasks of all benchmarks share: their files, splits and errors."""

from __future__ import annotations

import logging

import pytest

from gkd_core.errors import ConfigError, DataError


def entailments(count, start=0):
    names = ("entailment", "contradiction", "neutral")
    return [
        {"premise": f"text {n}", "hypothesis": f"clause {n}", "label": names[n % 3], "idx": n}
        for n in range(start, start + count)
    ]


def texts(split):
    return set(split.text)


def test_the_official_validation_rows_are_the_test_rows(folder, load):
    unlabeled = [{"premise": "secret", "hypothesis": "secret", "idx": 0}]
    files = {"train.jsonl": entailments(20), "val.jsonl": entailments(6, 20)}
    data = load("superglue/cb", folder(**files, **{"test.jsonl": unlabeled}))
    assert (data.kind, data.classes) == (
        "classification",
        ("entailment", "contradiction", "neutral"),
    )
    assert data.test.text == [f"text {n}" for n in range(20, 26)]
    assert data.test.pair == [f"clause {n}" for n in range(20, 26)]
    assert data.test.labels == [2, 0, 1, 2, 0, 1]
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert texts(data.train) | texts(data.validation) == {f"text {n}" for n in range(20)}


def test_validation_rows_are_drawn_by_the_seed_and_test_rows_are_not(folder, load, caplog):
    directory = folder(**{"train.jsonl": entailments(30)})
    with caplog.at_level(logging.WARNING):
        one, other = (load("superglue/cb", directory, seed) for seed in (1, 2))
    assert "no official validation rows (val.jsonl): 20 % of the training rows" in caplog.text
    assert one.test == other.test
    assert len(one.test) == 6
    assert texts(one.validation) != texts(other.validation)
    assert one.rows_hash != other.rows_hash
    assert not texts(one.test) & (texts(one.train) | texts(one.validation))


def test_files_and_the_archive_of_the_benchmark_can_be_named(folder, load):
    directory = folder(**{"train.jsonl": entailments(12), "val.jsonl": entailments(3, 12)})
    directory.rename(directory.parent / "cb")
    found = load("superglue/cb", directory.parent)
    train, test = (directory.parent / "cb" / name for name in ("train.jsonl", "val.jsonl"))
    named = load("superglue/cb", train, test=str(test))
    assert (named.train, named.test) == (found.train, found.test)
    validated = load("superglue/cb", train, test=str(test), validation=str(test))
    assert (len(validated.train), validated.validation) == (12, validated.test)


def test_language_models_read_the_texts_of_a_task(folder, load):
    directory = folder(**{"train.jsonl": entailments(12), "val.jsonl": entailments(3, 12)})
    data = load("superglue/cb", directory, kind="causal-lm")
    assert (data.kind, data.classes) == ("causal-lm", ())
    assert sorted(data.test.text) == sorted(
        f"{word} {n}" for word in ("text", "clause") for n in (12, 13, 14)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "gold"}, "task.label is 'gold', but the task 'superglue/cb' knows its columns"),
        ({"kind": "regression"}, "task.kind is 'regression', but rows of 'superglue/cb' are of"),
    ],
)
def test_settings_of_other_tasks_are_refused(folder, load, settings, message):
    directory = folder(**{"train.jsonl": entailments(12)})
    with pytest.raises(ConfigError, match=message):
        load("superglue/cb", directory, **settings)


def test_missing_files_are_named(folder, load, tmp_path):
    with pytest.raises(DataError, match=r"elsewhere .task.train. does not exist"):
        load("superglue/cb", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"has no train.jsonl, the training rows of superglue/cb"):
        load("superglue/cb", folder(**{"val.jsonl": entailments(3)}))
    directory = folder(**{"train.jsonl": entailments(3)})
    with pytest.raises(DataError, match=r"val.jsonl .task.test. is not a file"):
        load("superglue/cb", directory, test=str(tmp_path / "val.jsonl"))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"premise": "a", "hypo', "invalid JSON"),
        ('{"premise": "a", "hypothesis": "b", "label": "maybe"}', "the label is 'maybe', which is"),
        ('{"premise": "a", "hypothesis": "b"}', "'label' is empty"),
        ('{"premise": "a", "hypothesis": 7, "label": "neutral"}', "'hypothesis' is 7, not a text"),
        ('{"premise": " ", "hypothesis": "b", "label": "neutral"}', "'premise' is empty"),
    ],
)
def test_a_bad_row_is_named_with_its_line(folder, load, second, message):
    row = '{"premise": "a", "hypothesis": "b", "label": "neutral"}'
    directory = folder(**{"train.jsonl": entailments(12), "val.jsonl": f"{row}\n{second}\n"})
    with pytest.raises(DataError, match=rf"val.jsonl:2: {message}"):
        load("superglue/cb", directory)


def test_the_file_of_another_task_is_told(folder, load):
    directory = folder(**{"train.jsonl": entailments(12)})
    with pytest.raises(DataError, match=r"train.jsonl:1: there is no 'question', which rows of"):
        load("superglue/boolq", directory)
