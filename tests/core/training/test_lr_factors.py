"""Parts of the student that are frozen or learn at another rate than the stage."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gkd_core.analysis.explanation import explain
from gkd_core.api import Method, Step, hookimpl
from gkd_core.config.schema import TrainingConfig
from gkd_core.errors import MethodError
from gkd_core.models.parts import find_parts
from gkd_core.models.sites import find_sites
from gkd_core.objective.lr_factors import check_factors
from gkd_core.objective.step_plan import plan_step
from gkd_core.optim.engine import LocalEngine
from gkd_core.runs.outline import RunOutline, outline_stage
from gkd_core.training import loop
from gkd_core.training.assembly import build_stage

CPU = torch.device("cpu")


class Slow(Method):
    """Freezes the embedding and unlocks the second block after three steps; the head is slow."""

    name = "slow"
    paper = "A test"
    teachers = "none"
    needs_labels = True
    head = 0.1

    def lr_factors(self, models, step):
        locked = {2: 0.0} if step.index < 3 else {}
        return {"embedding": 0.0, "head": self.head, **locked}

    def reads(self, models, step):
        return ["student.logits"]

    def loss(self, student, teacher, batch, step):
        rows = nn.functional.cross_entropy(student.logits, batch.labels, reduction="none")
        return {self.name: rows}


class Faster(Slow):
    """Wants more of the head."""

    name = "faster"
    head = 0.5


class Plugin:
    @hookimpl
    def gkd_register_methods(self):
        return [Slow, Faster]


@pytest.fixture
def prepare(prepare_run, registry_with):
    def _prepare(expression, *settings, **options):
        registry = registry_with(Plugin())
        return prepare_run(f"method={expression}", *settings, registry=registry, **options)

    return _prepare


PARTS = {
    ("bert", "classification"): (["embeddings."], ["pooler.", "classifier."]),
    ("bert", "masked-lm"): (["embeddings."], ["cls."]),
    ("llama", "causal-lm"): (["embed_tokens."], ["model.norm.", "lm_head."]),
    ("opt", "causal-lm"): (["embed_tokens.", "embed_positions."], ["final_layer_norm."]),
    ("modernbert", "classification"): (["embeddings."], ["final_norm.", "head.", "classifier."]),
    ("deberta-v2", "masked-lm"): (
        ["embeddings.", "encoder.rel_embeddings."],
        ["cls."],
    ),
}


@pytest.mark.parametrize(("family", "head"), PARTS)
def test_every_weight_belongs_to_one_part(build_model, family, head):
    model = build_model(family, head)
    parts = find_parts(find_sites(model))
    assert list(parts) == ["embedding", 1, 2, 3, "head"]
    assert sorted(map(id, model.parameters())) == sorted(id(w) for p in parts.values() for w in p)
    names = {weight: name for name, weight in model.named_parameters()}
    for part, expected in zip(("embedding", "head"), PARTS[family, head], strict=True):
        found = [names[weight] for weight in parts[part]]
        assert found
        assert all(any(key in name for key in expected) for name in found), found
        assert all(any(key in name for name in found) for key in expected), found


def test_a_head_tied_to_the_embedding_is_part_of_it(build_model):
    model = build_model("llama", "causal-lm", tie_word_embeddings=True)
    parts = find_parts(find_sites(model))
    assert model.lm_head.weight is parts["embedding"][0]
    assert len(parts["head"]) == 1


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"embeding": 0.0}, "slow sets the learning rate of 'embeding', which is not a part"),
        (
            {0: 0.0},
            "of 0, which is not a part of the student. Its parts are 'embedding', the blocks 1",
        ),
        ({3: 0.0}, "of 3, which is not a part"),
        ({1: -0.1}, "of block 1 to -0.1 times that of the stage. Return 0 to freeze it"),
        ({"head": float("nan")}, "of head to nan times"),
    ],
)
def test_factors_that_mean_nothing_are_refused(factors, message):
    with pytest.raises(MethodError, match=message):
        check_factors(factors, layers=2, owner="slow")


def test_two_factors_of_one_part_are_refused_before_weights_are_loaded(prepare):
    with pytest.raises(MethodError, match="slow sets the learning rate of the student's head"):
        prepare("slow+faster")


def test_equal_factors_of_one_part_go_together(prepare):
    members = prepare("slow+soft").last.members
    plan = plan_step(members, Step(3, 9, 0, "distil", torch.Generator()))
    assert plan.lr_factors == {"embedding": 0.0, "head": 0.1}


def test_explain_shows_them(prepare):
    outline = RunOutline((outline_stage(prepare("slow").last),))
    lines = explain(outline).splitlines()
    assert "  rate       embedding, block 2: frozen, for slow" in lines
    assert "             head: 0.1 x the stage's, for slow" in lines
    assert outline.to_json()["stages"][0]["lr_factors"][0] == {
        "part": "embedding",
        "factor": 0.0,
        "methods": ("slow",),
    }


def two_parts(**settings):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parts = {number: list(layer.parameters()) for number, layer in enumerate(model, start=1)}
    settings = {"lr": 0.1, "warmup": 0, "lr_schedule": "constant", "clip": 0} | settings
    return model, LocalEngine([model], TrainingConfig(**settings), 10, CPU, parts)


def learn(model, engine, factors, index=0):
    engine.set_lr_factors(factors)
    engine.backward(model(torch.ones(1, 3)).sum())
    return engine.step(index)


def test_a_frozen_part_keeps_weights_and_moments_and_does_not_decay():
    model, engine = two_parts(weight_decay=0.5)
    learn(model, engine, {})
    before = copy.deepcopy(model.state_dict())
    kept = {name: tensor.clone() for name, tensor in engine.state_tensors().items()}
    learn(model, engine, {1: 0.0}, index=1)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("0."), name
    after = engine.state_tensors()
    frozen = [n for n, weight in enumerate(engine.parameters) if weight in {*model[0].parameters()}]
    assert len(frozen) == 2
    for name, tensor in after.items():
        assert torch.equal(tensor, kept[name]) == (int(name.split(".")[0]) in frozen), name


def test_a_part_that_was_never_thawed_has_no_moments():
    model, engine = two_parts()
    learn(model, engine, {1: 0.0})
    assert len({name.split(".")[0] for name in engine.state_tensors()}) == 2


def test_a_factor_multiplies_the_rate():
    model, engine = two_parts(weight_decay=0)
    before = [layer.weight.detach().clone() for layer in model]
    learn(model, engine, {1: 0.1})
    for layer, old, rate in zip(model, before, (0.01, 0.1), strict=True):
        step = (layer.weight.detach() - old).abs()
        torch.testing.assert_close(step, torch.full_like(step, rate))


def test_what_is_frozen_is_not_in_the_norm():
    model, engine = two_parts()
    whole = learn(copy.deepcopy(model), engine, {})  # no gradient of the engine's own weights
    assert float(whole) == 0
    model, engine = two_parts(lr=1e-9)
    parts = [float(learn(model, engine, {other: 0.0})) for other in (2, 1)]
    assert float(learn(model, engine, {})) == pytest.approx(sum(p**2 for p in parts) ** 0.5)


def test_the_order_of_the_state_does_not_depend_on_what_is_frozen():
    _, engine = two_parts()
    counted = [w for group in engine.optimizer.param_groups for w in group["params"]]
    assert all(a is b for a, b in zip(counted, engine.parameters, strict=True))


def weights(folder):
    return load_file(folder / "student" / "model.safetensors")


def test_a_run_moves_only_what_is_not_frozen(prepare, tmp_path):
    run = prepare("slow", "training.keep_best=false", "training.steps=3")
    start = build_stage(run.last, run.registry, tmp_path / "start", None).student.model.state_dict()
    run.execute()
    for name, weight in weights(tmp_path / "run").items():
        frozen = "embeddings" in name or "layer.1." in name
        unused = "key.bias" in name  # softmax does not see it: its gradient is rounding
        assert unused or torch.equal(weight, start[name]) == frozen, name


@pytest.mark.exhaustive
def test_a_resumed_run_goes_on_at_the_same_rates(prepare, tmp_path, monkeypatch):
    settings = ("training.checkpoint_every=2", "training.keep_best=false")
    prepare("slow", *settings, directory="whole").execute()
    stock = loop.train_step

    def dies(stage, batches, step):
        if step.index == 3:
            raise KeyboardInterrupt
        return stock(stage, batches, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare("slow", *settings, directory="broken").execute()
    prepare("slow", *settings, directory="broken").execute()
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(broken[name], weight) for name, weight in whole.items())
