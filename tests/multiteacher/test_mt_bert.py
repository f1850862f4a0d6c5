"""`mt-bert`: a teacher counts by its loss on the sample; teachers that learn together."""

import copy
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.optim.engine import LocalEngine
from gkd_core.testing.tiny import tiny_batch, tiny_model
from gkd_methods_multiteacher import cofinetuning
from gkd_methods_multiteacher.mt_bert import MTBERT

STUDENT = {"logits": torch.zeros(3, 2, dtype=torch.float64)}
LABELS = torch.tensor([0, 1, 0])


@pytest.fixture
def weights(case):
    def _weights(*logits):
        teachers = [{"logits": torch.tensor(each, dtype=torch.float64)} for each in logits]
        return case(MTBERT, {}, STUDENT, teachers, LABELS).weights()

    return _weights


def test_weight_is_that_of_the_teachers_loss(weights):
    even, sure = weights([[0, 0], [0, 0], [0, 0]], [[99, 0], [0, 99], [0, 99]])
    assert even.tolist() == pytest.approx([1 / (1 + math.log(2))] * 3)
    assert even[0].item() == pytest.approx(0.590616, abs=1e-6)
    assert sure.tolist() == pytest.approx([1, 1, 1 / (1 + 99)])


def test_weight_of_a_teacher_does_not_depend_on_the_others(weights):
    first, second = [[1, 0], [2, 0], [0, 1]], [[0, 3], [1, 1], [2, 0]]
    together, swapped = weights(first, second), weights(second, first)
    assert torch.equal(together[0], swapped[1])
    assert torch.equal(together[1], swapped[0])


@pytest.fixture
def alike(world, tmp_path):
    """Arguments that name two teachers of one width: `deep` with 4 blocks, `shallow` with 2."""
    config = BertConfig.from_pretrained(world / "teacher", num_hidden_layers=2)
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "shallow")
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(tmp_path / "shallow")
    deep, shallow = f"deep={world / 'teacher'}", f"shallow={tmp_path / 'shallow'}"
    return ["--teacher", deep, "--teacher", shallow, "--method", "mt-bert(soft)+hard"]


class Plain:
    """An engine that does nothing but backward passes."""

    def forward(self, loss):
        return loss()

    def backward(self, loss, last=True):
        loss.backward()


def test_a_shared_head_learns_from_all_teachers_and_a_body_from_its_own():
    models = [tiny_model("classification", layers=layers, seed=layers) for layers in (3, 2)]
    first, second = models
    heads = ("bert.pooler", "classifier")
    alone = [copy.deepcopy(model) for model in models]
    for name in heads:
        alone[1].get_submodule(name).load_state_dict(first.get_submodule(name).state_dict())
    batch = tiny_batch("classification")
    for model in alone:
        cofinetuning.accumulate(Plain(), nn.ModuleList([model]), batch, batch.counts())
    cofinetuning.share_heads([Extractor(model, find_sites(model)) for model in models])
    cofinetuning.accumulate(Plain(), nn.ModuleList(models), batch, batch.counts())
    found, expected = ([dict(m.named_parameters()) for m in each] for each in (models, alone))
    for name, weight in found[1].items():
        if name.startswith(heads):
            assert weight is found[0][name]
            both = expected[0][name].grad + expected[1][name].grad
            torch.testing.assert_close(weight.grad, both)
        elif weight.grad is not None:
            torch.testing.assert_close(weight.grad, expected[1][name].grad)
    assert second.classifier.weight.grad.abs().sum() > 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_teachers_learn_together_before_the_student_and_a_resume_takes_them_back(
    invoke, settings, alike, tmp_path, monkeypatch, dies_before
):
    given = [*alike, *settings[2:], "--no-baseline", "--set", "training.checkpoint_every=2"]
    given += ["--set", "mt-bert.cofinetuning=12"]
    whole = invoke("run", *given, "--output", tmp_path / "whole")
    assert whole.code == 0, whole.err
    said = re.search(r"together: deep accuracy ([\d.]+), shallow accuracy ([\d.]+)", whole.out)
    seen = []
    with dies_before(1, lambda stage: seen.extend(teacher.model for teacher in stage.teachers)):
        assert invoke("run", *given, "--output", tmp_path / "parts").code != 0
    assert seen[0].classifier.weight is seen[1].classifier.weight
    assert not any(model.training for model in seen)
    assert not any(weight.requires_grad for model in seen for weight in model.parameters())
    monkeypatch.setattr(cofinetuning, "_fine_tune", None)
    again = invoke("run", "--output", tmp_path / "parts", "--resume")
    assert again.code == 0, again.err
    one, other = (
        load_file(tmp_path / run / "student" / "model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert not list(tmp_path.glob("*/stages/*/*.safetensors"))
    assert all(float(value) > 0.6 for value in said.groups())


@pytest.mark.parametrize(
    ("teachers", "changes", "said"),
    [
        ("two", [], "large is a bert of width 32 and small a bert of 16"),
        ("alike", ["--set", "teachers.deep.dtype=bf16"], "but deep has dtype = 'bf16'"),
    ],
)
def test_teachers_that_cannot_be_tuned_together_are_refused(
    request, invoke, settings, teachers, changes, said
):
    named = [*request.getfixturevalue(teachers), "--method", "mt-bert(soft)+hard"]
    named += [] if teachers == "two" else settings[2:]
    done = invoke("run", *named, *changes, "--set", "mt-bert.cofinetuning=1")
    assert done.code == 2
    assert said in " ".join(done.err.split())


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that engines make, in order."""
    found = []
    make = LocalEngine._make_optimizer

    def note(engine, groups):
        make(engine, groups)
        found.append(engine.optimizer)

    monkeypatch.setattr(LocalEngine, "_make_optimizer", note)
    return found


@pytest.mark.exhaustive
def test_teachers_learn_with_the_optimizer_of_the_stage(invoke, settings, alike, optimizers):
    given = [*alike, *settings[2:], "--no-baseline", "--set", "training.steps=1"]
    given += ["--set", "mt-bert.cofinetuning=1", "--set", "optim.name=muon"]
    done = invoke("run", *given)
    assert done.code == 0, done.err
    assert len(optimizers) == 2
    for optimizer in optimizers:
        rules = {group["rule"]: group["params"] for group in optimizer.param_groups}
        assert {*rules} == {"muon", "adamw"}
        assert all(weight.dim() == 2 for weight in rules["muon"])
