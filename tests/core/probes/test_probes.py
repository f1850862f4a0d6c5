"""Probes: distances of features to the teacher's, measured while a stage trains."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.errors import MethodError
from gkd_core.losses.similarity import unbiased_cka
from gkd_core.probes.probe_file import PROBES, ProbedValue, ProbeFile, read_probes
from gkd_core.tracking.sinks.tensorboard import TensorBoard
from gkd_core.training import loop
from gkd_core.training.assembly import build_stage

ALL = 'probe.features=["all"]'
DROPOUT = "student.config={hidden_dropout_prob=0.3, classifier_dropout=0.3}"
"""Makes training depend on every random draw."""


def values(run, rows="training"):
    found = read_probes(run.locations.folder(run.last) / PROBES)
    return [value for value in found if value.rows == rows]


def weights(run):
    return torch.cat([w.flatten() for w in load_file(run.student / "model.safetensors").values()])


@pytest.fixture
def execute(prepare_run):
    """Train a student, and return its run: `execute("folder", "method=soft", ...)`."""

    def _execute(directory, *settings, **options):
        run = prepare_run(*settings, directory=directory, **options)
        run.execute()
        return run

    return _execute


def test_run_is_bit_equal_with_and_without_probes(execute, tmp_path):
    """`minilm` reads neither logits nor hidden states, and its teacher stops before the head."""
    board = TensorBoard()
    board.start(SimpleNamespace(directory=tmp_path), {})
    settings = ("method=minilm", DROPOUT, "training.precision=bf16")
    probed = execute("with", *settings, ALL, "probe.every=2", sinks=[board])
    plain = execute("without", *settings)
    assert torch.equal(weights(probed), weights(plain))
    lines = [(run.directory / "metrics.jsonl").read_text().splitlines() for run in (probed, plain)]
    losses = [[json.loads(line).get("loss/total") for line in found] for found in lines]
    assert losses[0] == losses[1]
    assert not (plain.locations.folder(plain.last) / PROBES).exists()

    found = values(probed)
    assert sorted({value.step for value in found}) == [1, 3, 5]
    assert {value.step for value in values(probed, "validation")} == {6}
    features = {(value.feature, value.teacher_feature) for value in found}
    assert features >= {("logits", "logits"), ("hidden[0]", "hidden[0]"), ("value[1]", "value[2]")}
    events = EventAccumulator(str(tmp_path / "tensorboard" / "distil"))
    events.Reload()
    curve = events.Scalars("probe/hidden[2]/mse")
    expected = [(v.step, pytest.approx(v.value)) for v in found if v.name == "hidden[2]/mse"]
    assert [(event.step, event.value) for event in curve] == expected


@pytest.fixture(scope="module")
def no_recorder():
    class Nobody:
        def track(self, step, values):
            pass

    return Nobody()


@pytest.fixture
def measured(prepare_run, tmp_path, no_recorder):
    """Measure on the first micro-batch; return the stage, the batch and the values by name."""

    def _measured(*settings, **options):
        run = prepare_run(*settings, **options)
        stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
        stage.student.model.train()
        _, (batch, *_) = next(iterate(stage.train, stage.collator, stage.sampler, 0, 1))
        step = Step(0, stage.total_steps, 0, stage.name, torch.default_generator)
        stage.probes.measure(stage, batch, step, no_recorder)
        found = read_probes(stage.probes.file.path)
        return stage, batch, {value.name: value.value for value in found}

    return _measured


def test_values_are_those_of_the_whole_tensors_without_padding(measured):
    stage, batch, found = measured("method=hard+soft", ALL, "probe.temperatures=[1, 3]")
    assert all(module.training for module in stage.student.model.modules())
    models = stage.student.model.eval(), stage.teachers[0].model
    with torch.no_grad():
        student, teacher = (model(**batch.inputs, output_hidden_states=True) for model in models)
    kept = batch.inputs["attention_mask"].bool()
    assert not kept.all()
    one, other = student.hidden_states[1][kept], teacher.hidden_states[2][kept]
    expected = {
        "hidden[1]/mse": functional.mse_loss(one, other),
        "hidden[1]/cosine": 1 - functional.cosine_similarity(one, other).mean(),
        "hidden[1]/1-cka": 1 - unbiased_cka(one, other),
        "logits/mse": functional.mse_loss(student.logits, teacher.logits),
        "logits/kl@3": functional.kl_div(
            (student.logits / 3).log_softmax(-1),
            (teacher.logits / 3).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        ),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name
    for model in models:
        model.set_attn_implementation("eager")
    with torch.no_grad():
        student, teacher = (model(**batch.inputs, output_attentions=True) for model in models)
    probs = [side.attentions[layer] for side, layer in ((student, 0), (teacher, 1))]
    divergence = functional.kl_div(
        *(p.clamp(min=1e-30).log() for p in probs), reduction="none", log_target=True
    )
    per_query = divergence.sum(-1).mean(1)[kept].mean()
    assert found["attention[1]/kl@1"] == pytest.approx(float(per_query), rel=1e-4)


def test_what_cannot_be_compared_is_left_out_with_the_reason(measured):
    stage, _, found = measured("method=soft", "student.hidden_size=16", "student.heads=2", ALL)
    assert "hidden[1]/1-cka" in found
    assert "hidden[1]/relation" in found
    assert "hidden[1]/mse" not in found
    assert "attention[1]/kl@1" not in found
    described = "\n".join(stage.describe())
    assert "left out: mse, cosine of hidden[0], hidden[1], hidden[2], query[1]" in described
    assert ": the widths 16 and 32 differ" in described
    assert "the numbers of heads 2 and 4 differ" in described


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (('probe.features=["hiden[1]"]',), "'hiden' is not a site. Did you mean 'hidden'?"),
        (('probe.features=["hidden[7]"]',), r"student.hidden\[7\], but the student has 2 layers"),
        (
            ('probe.features=["attention[1]"]', "student.heads=2", "student.hidden_size=16"),
            r"attention\[1\], which cannot be compared .* 2 and 4 differ",
        ),
        (
            ('probe.features=["all"]', "probe.layers=middle"),
            "probe.layers: 'middle' is not a layer map",
        ),
    ],
)
def test_feature_that_the_user_names_and_that_cannot_be_compared_is_refused(
    prepare_run, settings, said
):
    with pytest.raises(MethodError, match=said):
        prepare_run("method=soft", *settings)


@pytest.mark.parametrize(
    ("teacher", "kind"), [("lm-teacher", "masked-lm"), ("lm-decoder", "causal-lm")]
)
def test_language_models_are_compared_without_whole_logits(measured, world, teacher, kind):
    corpus = [f"task.{split}={world / 'corpus.txt'}" for split in ("train", "validation", "test")]
    _, _, found = measured("method=soft", *corpus, f"task.kind={kind}", ALL, teachers=(teacher,))
    assert found["logits/kl@1"] > 0
    assert found["hidden[2]/1-cka"] > 0


def test_every_teacher_is_compared(measured):
    stage, *_ = measured(
        "method=soft", 'probe.features=["hidden[2]|cls"]', teachers=("teacher", "decoder")
    )
    stored = read_probes(stage.probes.file.path)
    assert {value.teacher for value in stored} == {"teacher", "decoder"}
    assert len({value.value for value in stored if value.distance == "mse"}) == 2


class Killed(BaseException):
    """The process dies here."""


def test_resumed_stage_goes_on_without_a_gap_or_a_duplicate(prepare_run, execute, monkeypatch):
    settings = ("method=soft", DROPOUT, ALL, "probe.every=2", "training.checkpoint_every=3")
    whole = execute("whole", *settings)
    broken = prepare_run(*settings, directory="broken")
    train_step = loop.train_step

    def die(stage, batches, step):
        if step.index == 5:
            raise Killed
        return train_step(stage, batches, step)

    monkeypatch.setattr(loop, "train_step", die)
    with pytest.raises(Killed):
        broken.execute()
    assert [v.step for v in values(broken) if v.name == "logits/mse"] == [1, 3, 5]
    monkeypatch.undo()
    resumed = execute("broken", *settings)
    assert values(resumed) == values(whole)
    assert values(resumed, "validation") == values(whole, "validation")
    assert torch.equal(weights(resumed), weights(whole))


def test_stage_with_probes_is_trained_though_its_student_is_known(execute, tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    known = execute("known", "method=soft", "output.reuse=true")
    probed = execute("probed", "method=soft", "output.reuse=true", ALL)
    again = execute("again", "method=soft", "output.reuse=true")
    assert probed.results["distil"].fingerprint == known.results["distil"].fingerprint
    assert not probed.results["distil"].reused
    assert values(probed)
    assert again.results["distil"].reused


def _value(step, rows="training"):
    return ProbedValue(step, 0, rows, "teacher", "hidden[1]", "hidden[2]", "mse", float(step))


def test_file_drops_what_will_be_measured_again(tmp_path):
    file = ProbeFile(tmp_path / PROBES)
    file.append([_value(1), _value(3)])
    file.append([_value(5), _value(6, "validation")])
    again = ProbeFile(tmp_path / PROBES)
    again.start(done=3)
    again.append([_value(4)])
    assert [value.step for value in read_probes(again.path)] == [1, 3, 4]
    fresh = ProbeFile(tmp_path / PROBES)
    fresh.start(done=0)
    fresh.append([_value(1)])
    assert read_probes(fresh.path) == [_value(1)]
