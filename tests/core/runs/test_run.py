"""The loop of a stage: what is evaluated, kept, stopped and refused, and which hooks are told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from gkd_core.api import hookimpl
from gkd_core.contract.method import Method
from gkd_core.errors import GkdError
from gkd_core.evaluation.evaluate import Evaluation
from gkd_core.training import loop

SAVED = "model.safetensors"


class Breaks(Method):
    """The squared norm of the logits, spoilt in one step."""

    name = "breaks"
    paper = "A test"
    teachers = "none"
    at = 2
    spoil = staticmethod(lambda loss: loss * float("nan"))

    def reads(self, models, step):
        return ["student.logits"]

    def loss(self, student, teacher, batch, step):
        loss = student.logits.square().sum(-1)
        return {"breaks": self.spoil(loss) if step.index == self.at else loss}


class Spoils(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class Watcher:
    """Notes every call of a lifecycle hook."""

    def __init__(self):
        self.calls = []

    @hookimpl
    def gkd_register_methods(self):
        return [Breaks]

    @hookimpl
    def gkd_check_outline(self, outline):
        self.calls.append(("outline", [stage.name for stage in outline.stages]))

    @hookimpl
    def gkd_stage_start(self, run, stage):
        self.calls.append(("start", stage.name, stage.student.layers, list(run.results)))
        assert stage.total_steps == 4

    @hookimpl
    def gkd_step_end(self, run, stage, step, losses):
        self.calls.append(("step", stage.name, step.index, sorted(losses)))

    @hookimpl
    def gkd_evaluate(self, run, stage, step, metrics):
        self.calls.append(("evaluate", stage.name, step.index, sorted(metrics)))

    @hookimpl
    def gkd_stage_end(self, run, stage, error):
        self.calls.append(("end", stage.name, error))


@pytest.fixture
def watcher():
    """A plugin that notes the calls of its hooks."""
    return Watcher()


@pytest.fixture
def scripted(monkeypatch):
    """Let evaluations return given accuracies, whatever the student has learnt."""

    def _scripted(*values):
        left = list(values)
        monkeypatch.setattr(
            loop, "evaluate", lambda *a: Evaluation({"loss": 0.0, "accuracy": left.pop(0)}, None)
        )
        return left

    return _scripted


def _evaluated(run):
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    return [e["step"] for e in map(json.loads, lines) if "validation/loss" in e]


def _logged(run):
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    return [e["step"] for e in map(json.loads, lines) if "loss/total" in e]


def test_hooks_are_called_in_order_with_their_arguments(prepare_run, registry_with, watcher):
    run = prepare_run(
        "method=soft",
        "baseline=true",
        "training.steps=4",
        "training.evaluate_every=2",
        registry=registry_with(watcher),
    )
    run.execute()
    metrics = ["accuracy", "loss", "macro_f1"]
    expected = [("outline", ["baseline", "distil"])]
    for stage, term in (("baseline", "hard"), ("distil", "soft")):
        expected.append(("start", stage, 2, ["baseline"] if stage == "distil" else []))
        for index in (1, 3):
            expected.append(("step", stage, index, [term, "total"]))
            expected.append(("evaluate", stage, index, metrics))
        expected.append(("end", stage, None))
    assert watcher.calls == expected


def test_end_of_a_failed_stage_is_told_with_its_error(prepare_run, registry_with, watcher):
    run = prepare_run("method=breaks", "training.steps=4", registry=registry_with(watcher))
    with pytest.raises(GkdError) as raised:
        run.execute()
    assert watcher.calls[-1] == ("end", "distil", raised.value)


def test_end_is_told_when_another_plugin_fails_at_the_start(prepare_run, registry_with, watcher):
    def fails(run, stage):
        raise RuntimeError("builtin")

    watcher.gkd_stage_start = hookimpl(fails)
    run = prepare_run("method=soft", "training.steps=4", registry=registry_with(watcher))
    with pytest.raises(RuntimeError, match="builtin"):
        run.execute()
    assert [call[0] for call in watcher.calls] == ["outline", "end"]


@pytest.mark.parametrize("log_every", [1, 2, 100])
def test_spoilt_loss_names_stage_step_and_terms(prepare_run, registry_with, watcher, log_every):
    run = prepare_run(
        "method=breaks+soft",
        "training.steps=4",
        f"training.log_every={log_every}",
        registry=registry_with(watcher),
    )
    wanted = r"loss of stage 'distil' at step 3 of 4 is not finite: .*breaks = nan.*soft = [\d.]+"
    with pytest.raises(GkdError, match=wanted):
        run.execute()


def test_spoilt_gradient_is_refused_though_the_loss_is_finite(
    prepare_run, registry_with, watcher, monkeypatch
):
    monkeypatch.setattr(Breaks, "spoil", staticmethod(Spoils.apply))
    run = prepare_run("method=breaks", "training.steps=4", registry=registry_with(watcher))
    with pytest.raises(GkdError, match=r"gradient of stage 'distil' at step 3 of 4 is not finite"):
        run.execute()


def test_spoilt_weights_reach_neither_checkpoint_nor_best_student(
    prepare_run, registry_with, watcher
):
    run = prepare_run(
        "method=breaks",
        "training.steps=4",
        "training.log_every=100",
        "training.evaluate_every=1",
        registry=registry_with(watcher),
    )
    with pytest.raises(GkdError):
        run.execute()
    folder = run.directory / "stages" / "distil"
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000001", "step-00000002"]
    for path in (
        folder / "best.safetensors",
        folder / "checkpoints/step-00000002/student.safetensors",
    ):
        assert all(value.isfinite().all() for value in load_file(path).values())
    assert _evaluated(run) == [1, 2]
    assert not run.student.exists()


def test_spoilt_run_ends_the_command_with_status_2(invoke, settings, tmp_path):
    outcome = invoke("run", *settings, "--set", "training.lr=1e38", "--set", "training.clip=0")
    assert outcome.code == 2
    assert "Error: the loss of stage 'distil' at step" in outcome.err
    assert "is not finite: total = " in outcome.err
    assert "Traceback" not in outcome.err


def test_steps_decide_where_they_are_no_multiple_of_the_epoch(prepare_run):
    run = prepare_run("method=soft", "training.steps=8")
    run.execute()
    assert _evaluated(run) == [6, 8]
    assert _logged(run) == [2, 4, 6, 8]
    assert run.results["distil"].steps == 8


def test_epochs_decide_where_no_steps_are_given(prepare_run):
    run = prepare_run("method=soft", "training.epochs=2", "training.log_every=5")
    run.execute()
    assert _evaluated(run) == [6, 12]
    assert _logged(run) == [5, 10, 12]


def test_evaluation_comes_as_often_as_asked_and_at_the_end(prepare_run):
    run = prepare_run("method=soft", "training.evaluate_every=4")
    run.execute()
    assert _evaluated(run) == [4, 6]


def test_checkpoints_come_as_often_as_asked(prepare_run, monkeypatch):
    steps = []
    stock = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda s, p: steps.append(p.step) or stock(s, p))
    prepare_run("method=soft", "training.checkpoint_every=4").execute()
    assert steps == [4, 6]


def test_best_student_is_handed_on(prepare_run, scripted, monkeypatch):
    scripted(0.5, 0.9, 0.7)
    kept = []
    stock = loop.save_weights

    def keep(model, path):
        kept.append({n: p.detach().clone() for n, p in model.named_parameters()})
        stock(model, path)

    monkeypatch.setattr(loop, "save_weights", keep)
    run = prepare_run("method=soft", "training.evaluate_every=2")
    run.execute()
    saved = load_file(run.student / SAVED)
    assert len(kept) == 2
    assert all(torch.equal(saved[name], value) for name, value in kept[1].items())
    result = run.results["distil"]
    assert (result.best, result.best_step, result.steps) == (0.9, 4, 6)


def test_last_student_is_handed_on_if_the_best_is_not_wanted(prepare_run, scripted):
    found = []
    for values in ((0.9, 0.5, 0.5), (0.5, 0.5, 0.9)):
        scripted(*values)
        run = prepare_run(
            "method=soft",
            "training.evaluate_every=2",
            "training.keep_best=false",
            directory=f"{values[0]}",
        )
        run.execute()
        found.append(load_file(run.student / SAVED))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_patience_counts_evaluations_without_a_better_one(prepare_run, scripted):
    left = scripted(0.5, 0.5, 0.6, 0.6, 0.55, 0.9)
    run = prepare_run("method=soft", "training.evaluate_every=1", "training.patience=2")
    run.execute()
    assert left == [0.9]
    result = run.results["distil"]
    assert (result.steps, result.best, result.best_step) == (5, 0.6, 3)


def test_saved_student_is_a_plain_model(prepare_run, world):
    run = prepare_run("method=pkd+soft", "training.gradient_checkpointing=true")
    run.execute()
    config = json.loads((run.student / "config.json").read_text())
    assert "gkd" not in json.dumps(config)
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    model = AutoModelForSequenceClassification.from_pretrained(run.student).eval()
    assert not model.is_gradient_checkpointing
    assert model.config.num_hidden_layers == 2
    assert (run.student / "tokenizer.json").exists()


def test_same_seed_gives_the_same_student_and_another_seed_another(prepare_run):
    found = []
    for number, seed in enumerate((1, 1, 2)):
        run = prepare_run("method=pkd+soft", f"seed={seed}", directory=str(number))
        run.execute()
        found.append(load_file(run.student / SAVED))
    same, other = found[1:]
    assert all(torch.equal(value, same[name]) for name, value in found[0].items())
    assert any(not torch.equal(value, other[name]) for name, value in found[0].items())


def test_speed_leaves_out_evaluations_and_checkpoints(prepare_run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    def lasting(function, seconds):
        def slow(*arguments):
            clock[0] += seconds
            return function(*arguments)

        return slow

    for name, seconds in (("train_step", 0.5), ("evaluate", 7), ("save_checkpoint", 11)):
        monkeypatch.setattr(loop, name, lasting(getattr(loop, name), seconds))
    run = prepare_run("method=soft", "training.evaluate_every=1")
    run.execute()
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    speeds = [line["samples_per_second"] for line in lines if "loss/total" in line]
    assert speeds == pytest.approx([32.0, 32.0, 32.0])


def test_regression_is_trained_and_judged_by_its_correlation(prepare_run, world, tmp_path):
    lines = [{"text": f"the movie was {w}", "label": v} for w, v in (("good", 1.5), ("bad", -0.5))]
    (tmp_path / "values.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 12))
    values = [
        f"task.{split}={tmp_path / 'values.jsonl'}" for split in ("train", "validation", "test")
    ]
    run = prepare_run(
        "method=hard", f"student.model={world / 'lm-teacher'}", *values, "training.steps=20"
    )
    run.execute()
    result = run.results["distil"]
    assert result.metric == "pearson"
    assert result.best > 0.99
