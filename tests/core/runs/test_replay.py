"""Steps that are not finite: what the error names, what is saved, and how it is repeated."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gkd_core.api import hookimpl
from gkd_core.config.render import to_toml
from gkd_core.contract.method import Method
from gkd_core.errors import ConfigError, GkdError
from gkd_core.losses import Term
from gkd_core.runs.replay import replay
from gkd_core.runs.run_files import CONFIG
from gkd_core.training import loop

BROKEN = 3
"""The step that is broken, counted from 0."""


class Spoils(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class Fragile(Method):
    """Has modules, random draws and a state, and breaks in one step."""

    name = "fragile"
    paper = "A test"
    teachers = "none"
    broken = staticmethod(lambda loss: loss * float("nan"))
    breaks = staticmethod(lambda index: index == BROKEN)

    def __init__(self, config=None):
        super().__init__(config)
        self.average, self.seen = 0.5, torch.zeros(4)

    def reads(self, models, step):
        return ["student.hidden[1]|cls", "student.logits"]

    def build_modules(self, models):
        return {"map": nn.Linear(models.student.hidden_size, 4)}

    def items(self, batch):
        return {"even": batch.rows % 2 == 0}

    def loss(self, student, teacher, batch, step):
        mapped = self.modules["map"](student.hidden.cls[1])
        draw = torch.rand(len(batch), generator=step.generator)
        loss = (mapped - self.seen).square().mean(-1) * draw * self.average
        self.average = 0.9 * self.average + float(loss.detach().mean())
        self.seen = 0.5 * self.seen + mapped.detach().mean(0)
        if self.breaks(step.index):
            loss = self.broken(loss)
        even = batch.items("even")
        return {"broken": loss, "even": Term(student.logits.square().mean(-1) * even.mask, even)}

    def state_dict(self):
        return {"average": self.average, "seen": self.seen}

    def load_state_dict(self, state):
        self.average, self.seen = state["average"], state["seen"]


class Plugin:
    @hookimpl
    def gkd_register_methods(self):
        return [Fragile]


@pytest.fixture
def registry(registry_with):
    return registry_with(Plugin())


@pytest.fixture
def fails(prepare_run):
    """Run until the error; return the run, which can be repeated, and the message."""

    def _fails(*settings, **options):
        run = prepare_run(*settings, **options)
        (run.directory / CONFIG).write_text(to_toml(run.resolved))
        with pytest.raises(GkdError) as raised:
            run.execute()
        return run, str(raised.value)

    return _fails


@pytest.fixture
def weights_before(monkeypatch):
    """The student's weights before each step, by its index."""
    found, stock = {}, loop.train_step

    def train_step(stage, batches, step):
        named = stage.student.model.named_parameters()
        found[step.index] = {name: weight.detach().clone() for name, weight in named}
        return stock(stage, batches, step)

    monkeypatch.setattr(loop, "train_step", train_step)
    return found


@pytest.fixture(scope="session")
def overflowing(world, tmp_path_factory):
    """A teacher with finite weights whose third block computes what no float can hold."""
    folder = tmp_path_factory.mktemp("overflowing") / "teacher"
    shutil.copytree(world / "teacher", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight.fill_(1e38)
    model.save_pretrained(folder)
    return folder


def _saved(run):
    return run.directory / "stages" / "distil" / "not-finite"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_broken_teacher_is_named_and_never_a_lower_rate(
    fails, overflowing, world, precision, registry
):
    run, error = fails(
        "method=pkd+soft",
        f"student.model={world / 'teacher'}",
        f"training.precision={precision}",
        teachers=(overflowing,),
    )
    place = "bert.encoder.layer.2.output.dense"
    assert "the loss of stage 'distil' at step 1 of 6 is not finite" in error
    assert f"In the teacher 'teacher', the output of {place} is the first that contains" in error
    assert "training rows" in error
    assert f"gkd replay {run.directory}" in error
    assert "training.lr" not in error
    assert ("training.precision = 'bf16'" in error) == (precision == "fp16")
    done = replay(run.directory, registry, 0)
    assert done.differences == []
    assert (done.found.owner.side, done.found.place) == ("teacher", place)
    assert not run.student.exists()


def test_logits_that_only_the_losses_compute_are_looked_at(fails, world, tmp_path):
    folder = tmp_path / "loud"
    shutil.copytree(world / "lm-decoder", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[5:7] = 3e38
    model.save_pretrained(folder)
    settings = ("method=soft", "task.kind=causal-lm", f"student.model={world / 'lm-decoder'}")
    _, error = fails(*settings, teachers=(folder,))
    assert "In the teacher 'loud', the output of lm_head is the first that contains" in error


@pytest.mark.parametrize(
    ("loud", "options", "said"),
    [
        (
            "teacher",
            ("method=annealing-kd",),
            "the teacher 'loud' gives values up to 3e+38 at logits, too large to square. These "
            "values are finite, but beyond what a loss can use: name another checkpoint",
        ),
        (
            "student",
            ("method=fragile",),
            "the student gives values up to 3e+38 at logits, too large to square. Start from "
            "another student",
        ),
    ],
)
def test_values_too_large_for_a_loss_are_blamed_on_their_side(
    fails, world, tmp_path, registry, loud, options, said
):
    models = {"teacher": world / "teacher", "student": world / "teacher", loud: tmp_path / "loud"}
    shutil.copytree(world / "teacher", models[loud])
    model = AutoModelForSequenceClassification.from_pretrained(models[loud])
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3e38, -3e38]))
    model.save_pretrained(models[loud])
    settings = (*options, f"student.model={models['student']}")
    run, error = fails(*settings, teachers=(models["teacher"],), registry=registry)
    assert f"though the models compute no nan or inf: {said}" in error
    assert str(replay(run.directory, registry, 0).found)[1:] in error


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weights_stay_as_they_were_before_the_step(
    fails, registry, weights_before, optimizer, monkeypatch
):
    monkeypatch.setattr(Fragile, "state_dict", Method.state_dict)  # so that checks are put off
    settings = ("method=fragile+soft", f"optim.name={optimizer}", "training.log_every=100")
    run, error = fails(*settings, registry=registry)
    assert (
        "at step 4 of 6 is not finite: total = nan, fragile.broken = nan, fragile.even = " in error
    )
    assert (
        "The term 'fragile.broken' contains nan, though the models compute no nan or inf" in error
    )
    assert "Lower training.lr or the weight of the term" in error
    # AdamW leaves the weights on the device, so that the steps after it are run as well.
    assert (len(weights_before) == 6) == (optimizer == "adamw")
    stored = load_file(_saved(run) / "student.safetensors")
    for name, weight in weights_before[BROKEN].items():
        assert torch.equal(stored[name], weight), name


@pytest.mark.parametrize("settings", [(), ("training.accumulation=2", "training.precision=bf16")])
def test_replay_repeats_the_step_bit_for_bit(fails, registry, settings):
    run, _ = fails("method=fragile+soft", "training.log_every=100", *settings, registry=registry)
    done = replay(run.directory, registry, 0)
    assert done.saved.index == BROKEN
    assert done.saved.inexact == []
    assert done.differences == []
    assert float(done.losses["soft"]) > 0
    assert done.losses["fragile.broken"].isnan()
    assert (done.found.owner.side, done.found.owner.name) == ("term", "fragile.broken")


def test_spoilt_gradient_is_repeated_and_traced_to_its_module(fails, registry, monkeypatch):
    monkeypatch.setattr(Fragile, "broken", staticmethod(Spoils.apply))
    run, error = fails("method=fragile", registry=registry)
    assert "the gradient of stage 'distil' at step 4 of 6 is not finite (norm nan)" in error
    assert "In the method 'fragile 0', the gradient at the output of map is the first" in error
    done = replay(run.directory, registry, 0)
    assert done.differences == []
    assert done.found.is_gradient


def test_state_changed_in_place_is_said(fails, registry, monkeypatch):
    def adds(self, step):
        self.seen += 1

    monkeypatch.setattr(Fragile, "begin_step", adds)
    run, _ = fails("method=fragile", registry=registry)
    done = replay(run.directory, registry, 0)
    assert done.saved.inexact == ["fragile 0"]
    assert done.found.owner.name == "fragile.broken"


def test_replay_takes_the_sentence_of_the_error(invoke, settings, overflowing, world):
    outcome = invoke(
        *("run", *settings[4:], "--teacher", overflowing, "--student", world / "teacher"),
        *("--output", "broken", "--set", "training.precision=fp16"),
    )
    assert outcome.code == 2
    repeated = invoke("replay", "broken")
    assert repeated.code == 0
    assert "step           1 of 6 of stage distil, 16 rows" in repeated.out
    assert "repeated       bit for bit" in repeated.out
    first = repeated.out.rpartition("first          ")[2].strip()
    assert "in the teacher 'teacher', the output of bert.encoder.layer.2" in first
    assert first[1:] in outcome.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("directory", "said"),
    [("nothing", "nothing is not a run directory"), ("run", "run holds no step to repeat")],
)
def test_nothing_to_repeat_is_refused(directory, said, tmp_path, registry):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text("")
    with pytest.raises(ConfigError, match=said):
        replay(tmp_path / directory, registry, 0)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            6,
            "stage 'distil' has not trained anything: .* in all of its 6 steps, .* scale of 2048",
        ),
        (18, "the gradient of stage 'distil' at step 17 of 18 is not finite"),
    ],
)
def test_stage_whose_every_step_overflows_ends_with_an_error(
    fails, registry, monkeypatch, steps, said
):
    monkeypatch.setattr(Fragile, "broken", staticmethod(Spoils.apply))
    monkeypatch.setattr(Fragile, "breaks", staticmethod(lambda index: True))
    settings = ("method=fragile", "training.precision=fp16", f"training.steps={steps}")
    run, error = fails(*settings, registry=registry)
    assert re.match(said, error)
    assert "lower training.lr" not in error.lower()
    assert "training.precision = " in error
    assert not run.student.exists()


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_only_a_gradient_overflows(fails, prepare_run, registry, monkeypatch, spoil):
    settings = ("method=fragile", "training.precision=fp16")
    if spoil == "gradient":
        monkeypatch.setattr(Fragile, "broken", staticmethod(Spoils.apply))
        prepare_run(*settings, registry=registry).execute()
    else:
        run, error = fails(*settings, registry=registry)
        assert "the loss of stage 'distil' at step 4 of 6 is not finite" in error
        assert replay(run.directory, registry, 0).differences == []
