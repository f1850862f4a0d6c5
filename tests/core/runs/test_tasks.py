"""Tasks with options and metrics of their own."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from pydantic import Field

from gkd_core.api import Metric, PluginError, Schedule, Split, Task, TaskData, hookimpl
from gkd_core.config.render import to_toml
from gkd_core.errors import ConfigError

WORDS = [" ".join("abcdefghij"[int(digit)] for digit in str(7919 * n)) for n in range(40)]


class Numbers(Task):
    """Numbers written in letters: whether they are even, asked in groups."""

    name = "numbers"
    metric = Metric("all_right", True)

    class Config(Task.Config):
        """Options of `numbers`."""

        size: int = Field(2, ge=1, description="Rows of a group.")

    def load(self, kind, seed):
        def split(first, last):
            group = [str(n // self.options.size) for n in range(first, last)]
            return Split(WORDS[first:last], labels=[n % 2 for n in range(first, last)], group=group)

        splits = split(0, 24), split(24, 40), None
        return TaskData("classification", *splits, ("neg", "pos"), f"{self.options}", "numbers")

    def measure(self, split, predictions, data):
        found = super().measure(split, predictions, data)
        assert data.classes == ("neg", "pos")
        guesses = (predictions == 1).double().mean()
        return {"all_right": found["group_accuracy"], "odd": float(guesses)}


class Plugin:
    task = Numbers

    @hookimpl
    def gkd_register_tasks(self):
        return [self.task]


@pytest.fixture
def prepare(prepare_run, registry_with, tmp_path):
    """Prepare a run of the task."""

    def _prepare(*settings, plugin=Plugin, **options):
        (tmp_path / "own.toml").write_text("")
        file = "[task]\nname = 'numbers'\n"
        given = ("method=soft+hard", "training.epochs=2", *settings)
        return prepare_run(*given, file=file, registry=registry_with(plugin()), **options)

    return _prepare


def test_options_are_in_a_table_of_the_tasks_name(prepare):
    run = prepare("numbers.size=3")
    assert run.last.data.train.group[:4] == ["0", "0", "0", "1"]
    assert tomllib.loads(to_toml(run.resolved))["numbers"] == {"size": 3}
    assert prepare().last.data.train.group[:4] == ["0", "0", "1", "1"]
    with pytest.raises(ConfigError, match=r"numbers\.size must be a whole number"):
        prepare("numbers.size=0")
    with pytest.raises(ConfigError, match=r"numbers\.sice"):
        prepare("numbers.sice=3")


def test_the_best_student_is_chosen_by_the_tasks_metric(prepare):
    run = prepare("training.evaluate_every=1")
    run.execute()
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    logged = [entry for entry in map(json.loads, lines) if "validation/all_right" in entry]
    values = [entry["validation/all_right"] for entry in logged]
    result = run.results["distil"]
    assert (result.metric, result.best) == ("all_right", max(values))
    assert {"validation/odd", "validation/accuracy", "validation/loss"} <= logged[0].keys()


def test_a_metric_that_is_missing_is_told(prepare, monkeypatch):
    monkeypatch.setattr(Numbers, "measure", lambda *arguments: {})
    with pytest.raises(PluginError, match=r"metric of the task 'numbers' is 'all_right', which"):
        prepare("training.steps=1").execute()


@pytest.mark.parametrize("measured", [None, {"all_right": "much"}])
def test_metrics_that_are_no_numbers_are_told(prepare, monkeypatch, measured):
    monkeypatch.setattr(Numbers, "measure", lambda *arguments: measured)
    with pytest.raises(
        PluginError, match=r"Numbers\.measure returned .*; return a mapping of names"
    ):
        prepare("training.steps=1").execute()


def test_options_that_violate_the_contract_are_refused_with_the_class():
    def task(field):
        class Wrong(Task):
            name = "wrong"

            class Config(Task.Config):
                size: Schedule = field

        return Wrong

    for field, message in (
        (Field(description="A size."), "option `size` needs a default"),
        (Field(1), "option `size` needs a description"),
        (Field("many", description="A size."), "default of option `size`: .*neither a number"),
    ):
        with pytest.raises(PluginError, match=message):
            task(field)
    assert task(Field("linear(0 -> 1)", description="A size.")).Config().size.end == 1


def test_a_task_with_options_cannot_share_the_table_of_a_method(prepare_run, registry_with):
    class Soft(Numbers):
        """Has the name of a method."""

        name = "soft"

    class Both(Plugin):
        task = Soft

    registry = registry_with(Both())
    reason = r"task 'soft' of plugin 'test' .*share a table with 'soft' of plugin 'classic'"
    with pytest.warns(UserWarning, match=reason):
        prepare_run(registry=registry)
    with pytest.raises(ConfigError, match=reason):
        prepare_run("task.name=soft", registry=registry)


def odd(**changes):
    """A task whose rows are changed."""

    class Odd(Numbers):
        def load(self, kind, seed):
            data = super().load(kind, seed)
            return replace(data, **{name: make(data) for name, make in changes.items()})

    return Odd


class Nothing(Numbers):
    """Returns no rows."""

    def load(self, kind, seed):
        return None


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Nothing, "Nothing.load returned None; return a `TaskData`"),
        (odd(kind=lambda data: "clasification"), "there is no kind 'clasification'. Did you mean"),
        (odd(rows_hash=lambda data: None), "`rows_hash` is None, not a string"),
        (odd(validation=lambda data: None), "validation is a NoneType, not a `Split`"),
        (odd(train=lambda data: Split(WORDS, labels=[0, 1])), "train has 2 values in `labels` for"),
        (odd(train=lambda data: Split(WORDS[:2], labels=[0, -1])), "train has the label -1, which"),
        (odd(train=lambda data: Split(WORDS[:2], labels=[0, None])), "train has the label None"),
        (
            odd(train=lambda data: Split(WORDS[:2], labels=[0, 1], context=["a"])),
            "train has 1 values in `context` for 2 texts",
        ),
        (odd(train=lambda data: Split([3], labels=[0])), "train: `text` is text, not 3"),
        (odd(train=lambda data: Split(iter(WORDS), labels=[0])), "is a list_iterator, not a list"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_the_task(prepare, task, message):
    class Own(Plugin):
        pass

    Own.task = task
    with pytest.raises(PluginError, match=re.escape(message)):
        prepare(plugin=Own)


def test_labels_may_be_numbers_of_numpy(prepare):
    class Own(Plugin):
        task = odd(
            train=lambda data: replace(data.train, labels=np.asarray(data.train.labels)),
        )

    (spec,) = prepare(plugin=Own).specs
    assert len(spec.data.train) == 24
