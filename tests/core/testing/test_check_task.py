"""`check_task` passes tasks that keep the contract, and names what others break."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from gkd_core.api import Metric, Split, Task, TaskData
from gkd_core.testing import check_task

TEXT = ("good", "bad", "fine")
NUMBER = itertools.count()


class Words(Task):
    """Three rows, of which the seed holds one out."""

    name = "words"

    def load(self, kind, seed):
        rows = sorted(zip(TEXT, (0, 1, 0), strict=True), reverse=bool(seed % 2))
        train, validation = (
            Split([t for t, _ in part], labels=[label for _, label in part])
            for part in (rows[:2], rows[2:])
        )
        source = f"{len(rows)} rows"
        return TaskData(kind, train, validation, None, ("pos", "neg"), str(rows), source)


def broken(name, **changes):
    """A task whose data differ from those of `Words`."""

    def load(self, kind, seed):
        data = Words.load(self, kind, seed)
        return replace(data, **{key: change(data) for key, change in changes.items()})

    return type(name, (Words,), {"load": load})


class Drawn(Words):
    """Reads other rows each time."""

    def load(self, kind, seed):
        return super().load(kind, next(NUMBER))


class Plain(Words):
    """Has settings that no run has."""

    @classmethod
    def defaults(cls, kind):
        return {"trainings": {"epochs": 3}}


class Adjusts(Words):
    """Changes settings of recipes that no run has."""

    @classmethod
    def adjustments(cls, recipe, stage, settings):
        return {"lr": 3e-4}


class Process(Words):
    """Has a hash that differs from process to process."""

    def load(self, kind, seed):
        import os

        return replace(super().load(kind, seed), rows_hash=f"{os.getpid()} {seed % 2}")


def test_a_task_passes_on_two_processes():
    check_task(Words, ranks=2)
    check_task(Words, settings={"kind": "classification", "max_length": 16})


class Grouped(Words):
    """Has groups and a metric of its own."""

    metric = Metric("all_right", True)

    def load(self, kind, seed):
        data = super().load(kind, seed)
        parts = {
            name: replace(getattr(data, name), group=["a"] * len(getattr(data, name)))
            for name in ("train", "validation")
        }
        return replace(data, **parts)

    def measure(self, split, predictions, data):
        return {"all_right": super().measure(split, predictions, data)["group_accuracy"]}


class Unmeasured(Grouped):
    """Does not compute its metric."""

    def measure(self, split, predictions, data):
        return {"any_right": 1.0}


class Endless(Grouped):
    """Has a metric that is no number."""

    def measure(self, split, predictions, data):
        return {"all_right": float("nan")}


def test_groups_and_metrics_of_a_task_are_checked():
    check_task(Grouped)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Unmeasured, "`metric` is 'all_right', which is none of .*'any_right'"),
        (Endless, "the metric 'all_right' is nan"),
        (
            broken("Few", train=lambda data: replace(data.train, group=["a"])),
            "train has 1 values in `group`",
        ),
    ],
)
def test_a_task_with_wrong_metrics_or_groups_is_named(task, message):
    with pytest.raises(AssertionError, match=message):
        check_task(task)


def split_of(text, labels):
    return lambda data: Split(text, labels=labels)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (broken("Short", train=split_of(["a", "b"], [0])), "words: train has 1 values in `labels`"),
        (broken("Odd", train=split_of(["a"], [2])), "train has the label 2, which is no id of"),
        (broken("Empty", validation=split_of([], [])), "words: validation has no rows"),
        (broken("Number", train=split_of([1], [0])), "words: train: `text` is text"),
        (broken("Twice", classes=lambda data: ("pos", "pos")), "two classes have one name"),
        (
            broken("Same", rows_hash=lambda data: "same"),
            "the rows are others and `rows_hash` is the",
        ),
        (Drawn, "read again"),
        (Plain, r"`defaults` has \['trainings'\], no tables of a run file"),
        (Adjusts, r"`adjustments` has \['lr'\], no tables of a run file"),
    ],
)
def test_what_breaks_the_contract_is_named(task, message):
    with pytest.raises(AssertionError, match=message):
        check_task(task)


def test_processes_must_read_the_same_rows():
    with pytest.raises(AssertionError, match="another process reads rows of another hash"):
        check_task(Process, ranks=2)
