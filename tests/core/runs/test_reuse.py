"""A stage that some run has trained is not trained again: what decides that, and what is copied."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from tests.grids import first_of

from gkd_core.api import Method, hookimpl
from gkd_core.plugins import registry
from gkd_core.runs import run as run_module
from gkd_core.runs.fingerprint import Fingerprints
from gkd_core.runs.run import Run
from gkd_core.training import participants

SAVED = "model.safetensors"

FILE = """
output.reuse = true
[[stages]]
name = "assistant"
method = "soft"
student.layers = 3
[[stages]]
name = "small"
method = "soft"
teacher = "stage:assistant"
"""


class Plugin:
    """A plugin with hooks."""

    def __init__(self, **hooks):
        vars(self).update({name: hookimpl(hook) for name, hook in hooks.items()})


class Unused(Method):
    """A method that no stage names."""

    name = "unused"
    paper = "A test"

    def reads(self, models, step):
        return []

    def loss(self, student, teacher, batch, step):
        return {}


@pytest.fixture
def prepare(prepare_run, monkeypatch, tmp_path):
    """Prepare a run of two stages with an empty cache: `prepare("seed=2", directory="b")`."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def _prepare(*settings, directory="first", file=FILE, **options):
        return prepare_run(*settings, directory=directory, file=file, **options)

    return _prepare


@pytest.fixture
def trained(monkeypatch):
    """Names of the stages that are trained from now on."""
    names = []
    stock = Run._train

    def train(run, spec):
        names.append(spec.name)
        return stock(run, spec)

    monkeypatch.setattr(Run, "_train", train)
    return names


def _outcome(run):
    lines = [json.loads(x) for x in (run.directory / "metrics.jsonl").read_text().splitlines()]
    timed = {"samples_per_second"}
    entries = [{k: v for k, v in line.items() if k not in timed} for line in lines]
    weights = {str(p.relative_to(run.directory)): load_file(p) for p in run.directory.rglob(SAVED)}
    return entries, weights


def _assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, weights in one[1].items():
        assert all(torch.equal(value, other[1][name][key]) for key, value in weights.items())


def test_a_run_that_was_done_before_is_taken_over_whole(prepare, trained, monkeypatch):
    first = prepare()
    first.execute()
    assert trained == ["assistant", "small"]
    (first.directory / "stages" / "assistant" / "told.json").write_text("by a plugin")
    again, lines = prepare(directory="again"), []
    monkeypatch.setattr(again.recorder, "say", lines.append)
    again.execute()
    assert trained == ["assistant", "small"]
    _assert_same(_outcome(again), _outcome(first))
    assert (again.directory / "stages" / "assistant" / "told.json").read_text() == "by a plugin"
    assert [r.reused for r in again.results.values()] == [str(first.directory)] * 2
    assert [r.steps for r in again.results.values()] == [6, 6]
    assert any(f"stage small is copied from {first.directory}" in line for line in lines)


@pytest.mark.exhaustive
def test_a_change_downstream_leaves_what_is_upstream(prepare, trained):
    prepare().execute()
    trained.clear()
    changed = ("stages.small.training.lr=5e-4",)
    reused = prepare(*changed, directory="reused")
    reused.execute()
    assert trained == ["small"]
    fresh = prepare(*changed, "output.reuse=false", directory="fresh")
    fresh.execute()
    assert trained == ["small", "assistant", "small"]
    _assert_same(_outcome(reused), _outcome(fresh))


def test_a_change_upstream_trains_what_is_downstream(prepare, trained):
    prepare().execute()
    trained.clear()
    prepare("stages.assistant.soft.temperature=3", directory="other").execute()
    assert trained == ["assistant", "small"]


def test_without_reuse_nothing_is_noted(prepare, tmp_path):
    run = prepare("output.reuse=false")
    run.execute()
    assert not (tmp_path / "cache" / "stages").exists()
    assert {result.fingerprint for result in run.results.values()} == {None}


def _remove(run):
    shutil.rmtree(run.directory)


def _tamper(run):
    place = run.directory / "stages" / "assistant" / "student" / SAVED
    weights = load_file(place)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, place, metadata={"format": "pt"})


def _forget(run):
    (run.directory / "stages" / "assistant" / "done.json").unlink()


@pytest.mark.parametrize("spoil", first_of([_tamper, _remove, _forget]))
def test_a_student_that_is_not_as_it_was_is_trained_again(prepare, trained, spoil):
    first = prepare()
    first.execute()
    trained.clear()
    spoil(first)
    prepare(directory="again").execute()
    assert "assistant" in trained


@pytest.mark.exhaustive
def test_a_run_taken_over_serves_when_the_first_is_gone(prepare, trained):
    first = prepare()
    first.execute()
    prepare(directory="second").execute()
    _remove(first)
    trained.clear()
    third = prepare(directory="third")
    third.execute()
    assert trained == []
    assert third.results["small"].reused == str(first.directory)


def test_death_while_copying_leaves_no_half_student(prepare, trained, monkeypatch):
    prepare().execute()

    class Killed(BaseException):
        pass

    def dies(*arguments):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(run_module.StageResult, "save", dies)
        with pytest.raises(Killed):
            prepare(directory="second").execute()
    trained.clear()
    second = prepare(directory="second")
    second.execute()
    assert trained == []
    lines = (second.directory / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))


@pytest.fixture
def keys(prepare):
    """Return the keys of the stages of a run that is not executed."""

    def _keys(*settings, **options):
        run = prepare(*settings, **options)
        made = Fingerprints(run.registry)
        return {spec.name: made.of(spec) for spec in run.specs}

    return _keys


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("stages.assistant.training.lr=1e-4", ["settings"]),
        ("stages.assistant.soft.temperature=2", ["settings"]),
        ("stages.assistant.soft.mu=0.4", ["settings"]),
        ("stages.assistant.student.ffn_size=32", ["settings"]),
        ("task.rows=50", ["settings"]),
        ("task.max_length=16", ["settings"]),
        ("seed=2", ["settings"]),
        ("parallel.device=cpu", []),
        ("output.dir=elsewhere", []),
        ("pkd.beta=3", []),
        ("stages.small.training.lr=1e-4", []),
    ],
)
def test_what_decides_a_stage_is_in_its_key(keys, setting, parts):
    plain, changed = keys()["assistant"], keys(setting)["assistant"]
    assert changed.changed(plain) == parts
    assert (str(changed) == str(plain)) == (not parts)


def test_copies_of_rows_decide(keys, world):
    two = ("task.augment=2", f"task.augment_model={world / 'lm-teacher'}")
    plain, augmented = keys()["assistant"], keys(*two)["assistant"]
    assert augmented.changed(plain) == ["settings", "models"]
    other_share = keys(*two, "task.augment_share=0.5")["assistant"]
    assert other_share.changed(augmented) == ["settings"]
    assert keys("task.augment_share=0.5")["assistant"] == plain, "no copies are made"


def test_rows_decide(keys, world, tmp_path):
    for name in ("train", "validation", "test"):
        shutil.copy(world / f"{name}.jsonl", tmp_path / f"{name}.jsonl")
    place = [f"task.{n}={tmp_path / n}.jsonl" for n in ("train", "validation", "test")]
    assert keys(*place) == keys()
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    assert keys(*place)["assistant"].changed(keys()["assistant"]) == ["data"]


def test_weights_of_a_teacher_decide_and_not_its_place(keys, world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    assert keys(teachers=(tmp_path / "teacher",)) == keys()
    weights = load_file(tmp_path / "teacher" / SAVED)
    name = next(iter(weights))
    save_file(
        weights | {name: weights[name] + 1}, tmp_path / "teacher" / SAVED, metadata={"format": "pt"}
    )
    changed = keys(teachers=(tmp_path / "teacher",))
    assert changed["assistant"].changed(keys()["assistant"]) == ["models"]
    assert changed["small"].changed(keys()["small"]) == ["models"]


def test_a_stage_upstream_decides(keys):
    changed = keys("stages.assistant.training.lr=1e-4")
    assert changed["small"].changed(keys()["small"]) == ["models"]


@pytest.mark.parametrize(
    ("distribution", "parts"),
    [("gkd-core", ["code"]), ("gkd-methods-classic", ["code"]), ("gkd-methods-multiteacher", [])],
)
def test_code_of_gkd_and_of_plugins_that_take_part_decides(keys, monkeypatch, distribution, parts):
    before, stock = keys()["assistant"], participants.code_digests

    def as_it_is_now(module, name):
        return stock(module, name) | ({"new.py": "1"} if name == distribution else {})

    monkeypatch.setattr(participants, "code_digests", as_it_is_now)
    assert keys()["assistant"].changed(before) == parts


@pytest.mark.parametrize(
    ("hooks", "parts"),
    [
        ({"gkd_stage_start": lambda stage: None}, ["code"]),
        ({"gkd_step_end": lambda losses: None}, ["code"]),
        ({"gkd_evaluate": lambda metrics: None}, ["code"]),
        ({"gkd_stage_end": lambda error: None}, ["code"]),
        ({"gkd_check_outline": lambda outline: None, "gkd_report": lambda run: None}, []),
        ({"gkd_register_methods": lambda: [Unused]}, []),
    ],
)
def test_a_plugin_decides_if_a_hook_is_given_the_stage(keys, registry_with, hooks, parts):
    changed = keys(registry=registry_with(Plugin(**hooks)))
    assert changed["assistant"].changed(keys()["assistant"]) == parts


def test_a_plugin_decides_if_a_method_uses_what_is_its_own(prepare, registry_with, monkeypatch):
    """One method has its base from `classic`, another uses a function of `multiteacher`."""
    soft = registry().methods["soft"]
    derived = type("Derived", (soft,), {"__doc__": "Softer.", "name": "softer"})
    borrowing = ModuleType("borrowing")
    borrowing.shrink = import_module("gkd_methods_multiteacher.assistants").shrink
    monkeypatch.setitem(sys.modules, "borrowing", borrowing)
    borrows = type(
        "Borrows", (Unused,), {"__module__": "borrowing", "__doc__": "A test.", "name": "borrows"}
    )
    known = registry_with(Plugin(gkd_register_methods=lambda: [derived, borrows]))
    (spec,) = prepare("method=softer", file="", registry=known).specs
    found = [plugin.name for plugin in participants.participants(spec, known)]
    assert found == ["classic", "core", "test"]
    (spec,) = prepare("method=borrows", file="", registry=known).specs
    found = [plugin.name for plugin in participants.participants(spec, known)]
    assert found == ["core", "multiteacher", "test"]


def test_a_plugin_decides_if_the_code_of_another_imports_it(prepare, registry_with, monkeypatch):
    """A helper of a method imports a module of `multiteacher`."""
    derived = type("Unlike", (Unused,), {"__doc__": "A test.", "name": "unlike"})
    known = registry_with(Plugin(gkd_register_methods=lambda: [derived]))
    own = next(p.distribution for p in known.plugins.values() if p.name == "test")
    other, file = "gkd_methods_multiteacher.assistants", Path("any.py")
    modules = {own: [derived.__module__, "helper"], "gkd-methods-multiteacher": [other]}
    monkeypatch.setattr(
        participants, "code_modules", lambda _, name: dict.fromkeys(modules.get(name, []), file)
    )
    imported = {derived.__module__: {"helper"}, "helper": {other, "torch"}}
    monkeypatch.setattr(participants, "imports", lambda name, _: imported.get(name, set()))
    (spec,) = prepare("method=unlike", file="", registry=known).specs
    found = [plugin.name for plugin in participants.participants(spec, known)]
    assert found == ["core", "multiteacher", "test"]


class Weighs(Method):
    """A method whose result depends on files, and on what a word stands for."""

    name = "weighs"
    paper = "A test"
    means: ClassVar[dict[str, str]] = {}

    class Config(Method.Config):
        table: Path | None = Field(None, description="A file or a directory.")
        words: tuple[str, ...] = Field((), description="Words, or files of words.")

    config: Config

    def reads(self, models, step):
        return []

    def loss(self, student, teacher, batch, step):
        return {}

    def fingerprint(self):
        return self.means.get(self.config.words[0], "") if self.config.words else ""


@pytest.fixture
def weighs(keys, registry_with):
    """Return the key of a stage with the method `weighs` and settings."""
    known = registry_with(Plugin(gkd_register_methods=lambda: [Weighs]))
    return lambda *settings: keys("method=weighs", *settings, file="", registry=known)["distil"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("table.json", "weighs.table={}/table.json"),
        ("tables/deep/one.json", "weighs.table={}/tables"),
        ("list", 'weighs.words=["many", "{}/list"]'),
    ],
)
def test_the_content_of_what_an_option_names_decides(weighs, tmp_path, name, setting):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    before = weighs(setting.format(tmp_path))
    path.touch()
    assert weighs(setting.format(tmp_path)) == before
    path.write_text("2")
    assert weighs(setting.format(tmp_path)).changed(before) == ["settings"]


def test_what_a_method_says_of_its_options_decides(weighs, monkeypatch):
    before = weighs('weighs.words=["many"]')
    monkeypatch.setitem(Weighs.means, "few", "3")
    assert weighs('weighs.words=["many"]') == before
    monkeypatch.setitem(Weighs.means, "many", "7")
    assert weighs('weighs.words=["many"]').changed(before) == ["settings"]


def test_a_resumed_run_tells_what_has_changed_under_a_finished_stage(
    prepare, monkeypatch, world, tmp_path
):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    prepare(teachers=(tmp_path / "teacher",)).execute()
    weights = load_file(tmp_path / "teacher" / SAVED)
    save_file(
        {name: value * 2 for name, value in weights.items()},
        tmp_path / "teacher" / SAVED,
        metadata={"format": "pt"},
    )
    run, lines = prepare(teachers=(tmp_path / "teacher",)), []
    monkeypatch.setattr(run.recorder, "say", lines.append)
    run.execute()
    assert "stage assistant is finished already; changed since then: models" in lines
