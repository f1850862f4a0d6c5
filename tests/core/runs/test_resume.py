"""A run that dies at any moment and goes on ends exactly as one that never died."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from tests import forked

from gkd_core.api import hookimpl
from gkd_core.contract.method import Method
from gkd_core.models import save
from gkd_core.runs import run as run_module
from gkd_core.training import checkpoint, loop

SETTINGS = (
    "method=remembers+pkd+soft",
    "training.epochs=2",
    "training.accumulation=2",
    "training.evaluate_every=3",
    "training.checkpoint_every=2",
    "training.log_every=1",
    "training.lr=3e-3",
)
TIMING = ("samples_per_second", "milliseconds", "seconds")


class Killed(BaseException):
    """The process dies here; unlike SIGKILL a test can catch it."""


class Remembers(Method):
    """Has trained modules, a state and random draws, all of which decide its loss."""

    name = "remembers"
    paper = "A test"

    def __init__(self, config=None):
        super().__init__(config)
        self.average = 0.5

    def reads(self, models, step):
        return ["student.hidden[1]|cls", "teacher.hidden[2]|cls"]

    def build_modules(self, models):
        width = models.student.hidden_size
        return {"projection": torch.nn.Linear(width, width), "norm": torch.nn.BatchNorm1d(width)}

    def loss(self, student, teacher, batch, step):
        projected = self.modules["norm"](self.modules["projection"](student.hidden.cls[1]))
        noise = torch.rand(projected.shape[-1], generator=step.generator)
        losses = (noise * (projected - teacher.hidden.cls[2]).square()).mean(-1)
        self.average = 0.9 * self.average + 0.1 * float(losses.detach().mean())
        return {"remembers": losses / (1 + self.average)}

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


class Plugin:
    """Provides the method."""

    @hookimpl
    def gkd_register_methods(self):
        """Return it."""
        return [Remembers]


@pytest.fixture
def prepare(prepare_run, registry_with):
    """Prepare a run that has everything a checkpoint must hold."""

    def _prepare(*settings, **options):
        return prepare_run(*SETTINGS, *settings, registry=registry_with(Plugin()), **options)

    return _prepare


def _entries(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMING}
        for line in lines
    ]


def _outcome(directory):
    """Return everything about a finished run but the time it took."""
    results = [
        json.loads(path.read_text()) for path in sorted(directory.glob("stages/*/done.json"))
    ]
    students = sorted(directory.glob("**/model.safetensors"))
    return (
        [{k: v for k, v in r.items() if k not in ("seconds", "student")} for r in results],
        [str(path.relative_to(directory)) for path in students],
        _entries(directory),
        [load_file(path) for path in students],
    )


def _assert_equal(found, expected):
    assert found[:3] == expected[:3]
    for mine, theirs in zip(found[3], expected[3], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def _kill(monkeypatch, module, name, call, before=False):
    """Let the process die in a call of a function: at its end, or before it does a thing."""
    stock = getattr(module, name)
    calls = []

    def dies(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call and before:
            raise Killed(name)
        result = stock(*arguments, **keywords)
        if len(calls) == call:
            raise Killed(name)
        return result

    monkeypatch.setattr(module, name, dies)


@pytest.fixture(scope="module")
def outcomes():
    """Outcomes of undisturbed runs by their settings, so that each is trained once."""
    return {}


@pytest.fixture
def uninterrupted(prepare, outcomes):
    """Return the outcome of a run that nothing disturbed."""

    def _outcome_of(*settings, **options):
        key = (*settings, *options.values())
        if key not in outcomes:
            run = prepare(*settings, directory="whole", **options)
            run.execute()
            assert not list(run.directory.glob("stages/*/checkpoints"))
            assert not list(run.directory.glob("stages/*/*.safetensors"))
            outcomes[key] = _outcome(run.directory)
        return outcomes[key]

    return _outcome_of


MOMENTS = {
    "before the first step": (loop, "train_step", 1, True),
    "in a step before the first checkpoint": (loop, "train_step", 2, False),
    "in a later step": (loop, "train_step", 7, False),
    "after a log line": (loop, "_log", 5, False),
    "while the best student is written": (loop, "save_weights", 1, True),
    "after the best student is written": (loop, "save_weights", 1, False),
    "after an evaluation": (loop, "_evaluate", 2, False),
    "while the first checkpoint is written": (checkpoint, "random_states", 1, False),
    "while a later checkpoint is written": (checkpoint, "random_states", 4, False),
    "after the first checkpoint": (loop, "save_checkpoint", 1, False),
    "after a later checkpoint": (loop, "save_checkpoint", 4, False),
    "after the last checkpoint": (loop, "save_checkpoint", 6, False),
    "before the student is renamed": (save, "replace_directory", 1, True),
    "after the student is saved": (run_module, "save_model", 1, False),
    "before checkpoints are removed": (run_module, "remove_checkpoints", 1, True),
    "after checkpoints are removed": (run_module, "remove_checkpoints", 1, False),
}


OTHERS = {
    "before the first step",
    "in a later step",
    "after an evaluation",
    "after the last checkpoint",
    "after a log line",
    "after the best student is written",
    "while the first checkpoint is written",
    "after the first checkpoint",
    "after a later checkpoint",
    "after the student is saved",
    "before checkpoints are removed",
}
"""Moments that resemble another one."""


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[pytest.mark.exhaustive] if m in OTHERS else []) for m in MOMENTS],
)
def test_resumed_run_ends_bit_equal(prepare, uninterrupted, monkeypatch, moment):
    _die_and_resume(prepare, monkeypatch, *MOMENTS[moment])
    _assert_equal(_outcome(prepare().directory), uninterrupted())


STAGES = """
[[stages]]
name = "first"
method = "remembers+soft"
[[stages]]
name = "second"
"""
BETWEEN = {
    "in the baseline": (loop, "train_step", 5, False),
    "after the baseline": (run_module, "remove_checkpoints", 1, False),
    "in the first stage": (loop, "train_step", 12 + 5, False),
    "before the first stage is noted as done": (run_module, "save_model", 2, False),
    "after the first stage": (run_module, "remove_checkpoints", 2, False),
    "while the second stage is built": (run_module, "build_stage", 3, True),
    "in the second stage": (loop, "train_step", 24 + 8, False),
}
SOME = ("after the baseline",)
"""A moment between stages; `test_stage_graph` stops inside of each."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=() if m in SOME else pytest.mark.exhaustive) for m in BETWEEN],
)
def test_resumed_stages_end_bit_equal(prepare, uninterrupted, monkeypatch, moment):
    options = {"file": STAGES}
    _die_and_resume(prepare, monkeypatch, *BETWEEN[moment], "baseline=true", **options)
    _assert_equal(_outcome(prepare(**options).directory), uninterrupted("baseline=true", **options))


STOPPING = ("training.patience=2", "training.lr=0.1", "training.epochs=4")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param((loop, "train_step", 5, False), marks=pytest.mark.exhaustive),
        (loop, "save_checkpoint", 4, False),
    ],
    ids=["before it stops", "near its end"],
)
def test_resumed_early_stopping_ends_bit_equal(prepare, uninterrupted, monkeypatch, moment):
    expected = uninterrupted(*STOPPING)
    assert expected[0][0]["steps"] < 24
    _die_and_resume(prepare, monkeypatch, *moment, *STOPPING)
    _assert_equal(_outcome(prepare(*STOPPING).directory), expected)


@pytest.mark.exhaustive
def test_stopped_stage_that_dies_in_its_save_does_not_go_on(prepare, uninterrupted, monkeypatch):
    expected = uninterrupted(*STOPPING)
    _die_and_resume(prepare, monkeypatch, run_module, "save_model", 1, True, *STOPPING)
    _assert_equal(_outcome(prepare(*STOPPING).directory), expected)


@pytest.mark.exhaustive
def test_run_that_dies_twice_ends_bit_equal(prepare, uninterrupted, monkeypatch):
    for call in (5, 4):
        _die(prepare, monkeypatch, loop, "train_step", call, False)
    prepare().execute()
    _assert_equal(_outcome(prepare().directory), uninterrupted())


def test_unfinished_checkpoint_is_never_loaded(prepare, uninterrupted, monkeypatch):
    _die(prepare, monkeypatch, loop, "train_step", 6, False)
    folder = prepare().directory / "stages" / "distil" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
    whole = folder / "step-00000004"
    cut = shutil.copytree(whole, folder / "step-00000006.tmp")
    (cut / "progress.json").unlink()
    data = (whole / "student.safetensors").read_bytes()
    (cut / "student.safetensors").write_bytes(data[: len(data) // 2])
    prepare().execute()
    _assert_equal(_outcome(prepare().directory), uninterrupted())


def test_finished_run_is_not_trained_again(prepare, monkeypatch):
    prepare("baseline=true").execute()
    before = _outcome(prepare().directory)
    monkeypatch.setattr(run_module, "build_stage", None)
    again = prepare("baseline=true")
    again.execute()
    assert list(again.results) == ["baseline", "distil"]
    _assert_equal(_outcome(again.directory), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint_at", "epochs"), [(12, 5), pytest.param(40, 10, marks=pytest.mark.exhaustive)]
)
def test_run_killed_by_signal_and_resumed_ends_bit_equal(
    invoke, settings, tmp_path, checkpoint_at, epochs
):
    """The whole command, with a real SIGKILL while the next steps are under way."""
    every = ("--set", "training.checkpoint_every=4", "--set", "training.log_every=1")
    arguments = ["run", *settings, "--set", f"training.epochs={epochs}", *every]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    folder = killed / "stages" / "distil" / "checkpoints"
    process = forked.start(forked.GKD, *arguments, "--output", killed, cwd=tmp_path)
    wanted = f"step-{checkpoint_at:08d}"
    while process.is_alive() and not any(p >= folder / wanted for p in folder.glob("step-*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert folder.exists()
    assert not (killed / "student").exists()
    assert invoke(*arguments, "--output", killed, "--resume").code == 0
    assert invoke(*arguments, "--output", whole).code == 0
    _assert_equal(_outcome(killed), _outcome(whole))
    assert _results(killed) == _results(whole)


def _results(directory):
    results = json.loads((directory / "results.json").read_text())
    for row in results["rows"]:
        del row["milliseconds"], row["seconds"], row["model"]
    return results


def _die(prepare, monkeypatch, module, name, call, before, *settings, **options):
    with monkeypatch.context() as dying:
        _kill(dying, module, name, call, before)
        with pytest.raises(Killed):
            prepare(*settings, **options).execute()


def _die_and_resume(prepare, monkeypatch, module, name, call, before, *settings, **options):
    _die(prepare, monkeypatch, module, name, call, before, *settings, **options)
    prepare(*settings, **options).execute()
