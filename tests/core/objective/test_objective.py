"""The sum an expression stands for: order, weights, random draws, several teachers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.api import hookimpl
from gkd_core.contract.method import Method
from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.contract.schedule import Schedule
from gkd_core.contract.step import Step
from gkd_core.errors import ConfigError, PluginError
from gkd_core.objective.objective import Objective, name_seed
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import Registry, registry
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step


class Draws(Method):
    """Reads a random teacher layer in every step, as RAIL-KD does."""

    name = "draws"
    paper = "A test"

    def __init__(self, config=None):
        super().__init__(config)
        self.read = []

    def reads(self, models, step):
        layer = int(torch.randint(1, models.teacher.layers + 1, (), generator=step.generator))
        return [f"teacher.hidden[{layer}]|mean", "student.hidden[1]|mean"]

    def loss(self, student, teacher, batch, step):
        (layer,) = teacher.hidden.mean.layers
        self.read.append(layer)
        difference = student.hidden.mean[1] - teacher.hidden.mean[layer]
        return {"draws": difference.square().mean(-1)}


class DrawsPlugin:
    """A plugin with that method."""

    @hookimpl
    def gkd_register_methods(self):
        """Return it."""
        return [Draws]


@pytest.fixture
def first_losses(prepare_run, tmp_path):
    """Return the losses of the first step of a run, in fp64: `first_losses("method=soft")`."""

    def _losses(*settings, step=0, **options):
        run = prepare_run(*settings, **options)
        stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
        for model in (stage.student.model, *(teacher.model for teacher in stage.teachers)):
            model.double().eval()
        rows = stage.sampler.epoch(0)[0]
        batches = [stage.collator.collate(stage.train, part, 0) for part in rows]
        where = Step(step, 10, 0, "distil", torch.default_generator)
        return train_step(stage, batches, where).read()

    return _losses


def _student(run):
    run.execute()
    return load_file(run.student / "model.safetensors")


def test_order_of_methods_changes_no_bit(prepare_run):
    found = [
        _student(prepare_run(f"method={method}", directory=method))
        for method in ("pkd+soft+hard", "hard+soft+pkd")
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_weights_of_an_expression_count(first_losses):
    plain = first_losses("method=pkd+soft")
    weighted = first_losses("method=3*pkd+0.25*soft")
    assert (weighted["pkd"], weighted["soft"]) == (plain["pkd"], plain["soft"])
    assert weighted["total"] == pytest.approx(3 * plain["pkd"] + 0.25 * plain["soft"])


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (9, 0.9)])
def test_scheduled_weight_follows_the_step(first_losses, step, share):
    losses = first_losses("method=linear(0 -> 1)*soft+hard", step=step)
    assert losses["total"] == pytest.approx(share * losses["soft"] + losses["hard"])


def test_weight_of_a_method_counts_for_all_its_terms(first_losses):
    losses = first_losses("method=2*kd")
    assert set(losses) == {"total", "kd.soft", "kd.hard"}
    assert losses["total"] == pytest.approx(2 * (losses["kd.soft"] + losses["kd.hard"]))


def test_two_averaged_teachers_give_the_mean_of_their_losses(first_losses, world, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    other = AutoModelForSequenceClassification.from_pretrained(world / "teacher")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(tmp_path / "other")
    # All students start from the same checkpoint, not from the teacher of their run.
    start = (f"student.model={world / 'teacher'}", "method=soft+hard")
    both = first_losses(*start, teachers=("teacher", tmp_path / "other"))
    one = first_losses(*start, teachers=("teacher",))
    two = first_losses(*start, teachers=(tmp_path / "other",))
    assert one["soft"] != pytest.approx(two["soft"])
    assert both["soft"] == pytest.approx((one["soft"] + two["soft"]) / 2)
    assert both["hard"] == pytest.approx(one["hard"])


def test_one_teacher_needs_no_combiner(prepare_run, monkeypatch):
    named = []
    monkeypatch.setattr(Registry, "combiner", lambda self, name: named.append(name))
    prepare_run("method=soft", "training.steps=1").execute()
    assert named == []


def test_unknown_combiner_is_refused_before_anything_is_loaded(prepare_run):
    with pytest.raises(ConfigError, match=r"unknown combiner 'averag'. Did you mean 'average'\?"):
        prepare_run("method=averag(soft)")


def test_random_reads_are_drawn_once_a_step(prepare_run, registry_with):
    run = prepare_run(
        "method=draws", "training.accumulation=4", registry=registry_with(DrawsPlugin())
    )
    run.execute()
    (method,) = run.last.members[0].methods
    read = method.read
    assert len(read) == 6 * 4
    steps = [set(read[4 * step : 4 * step + 4]) for step in range(6)]
    assert all(len(layers) == 1 for layers in steps)
    assert len(set().union(*steps)) > 1


def test_plans_do_not_move_the_random_draws(prepare_run, registry_with):
    run = prepare_run("method=draws", registry=registry_with(DrawsPlugin()))
    (member,) = run.last.members
    fresh = torch.Generator().manual_seed(name_seed(1, "draws"))
    assert torch.equal(member.generator.get_state(), fresh.get_state())


def test_auxiliary_modules_depend_on_seed_and_method_alone():
    class Projects(Method):
        """Has a module."""

        name = "projects"
        paper = "A test"

        def build_modules(self, models):
            return {"projection": torch.nn.Linear(3, 3)}

    class Other(Projects):
        """Another one."""

        name = "other"

    info = ModelInfo("student", "bert", 2, 8, 2, 2, 4, 16, 10, 2, 32)

    def weight(*methods, seed=1):
        members = [
            ActiveMethod(
                m.name, Schedule.parse(1), (m(),), (Models(info, None),), torch.Generator()
            )
            for m in methods
        ]
        objective = Objective(members)
        objective.build_modules(seed)
        return objective.modules["projects 0"]["projection"].weight

    before = torch.get_rng_state()
    assert torch.equal(weight(Projects), weight(Other, Projects))
    assert not torch.equal(weight(Projects), weight(Projects, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_over_samples_may_be_given_as_a_number_or_per_sample(first_losses, monkeypatch):
    soft = registry().method("soft")
    stock = soft.loss
    exact = first_losses("method=soft")

    def per_sample(self, *arguments):
        return {"soft": stock(self, *arguments)["soft"].values}

    def mean(self, *arguments):
        return {"soft": stock(self, *arguments)["soft"].values.mean()}

    for loss in (per_sample, mean):
        monkeypatch.setattr(soft, "loss", loss)
        assert first_losses("method=soft")["soft"] == pytest.approx(exact["soft"])
        parts = first_losses("method=soft", "training.accumulation=2")
        assert parts["soft"] == pytest.approx(exact["soft"])


class Builds(Draws):
    """Builds what a test wants."""

    name = "builds"
    built: object = None

    def build_modules(self, models):
        return type(self).built


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (torch.nn.Linear(1, 1), "returned a Linear; return a mapping of names"),
        ({"fit": torch.ones(2)}, "returned a Tensor as 'fit'; each value is"),
        (
            {"fit.a": torch.nn.Linear(1, 1)},
            "returned a module named 'fit.a'; a name",
        ),
    ],
)
def test_modules_that_a_method_may_not_build_are_refused(monkeypatch, built, message):
    info = ModelInfo("student", "bert", 2, 8, 2, 2, 4, 16, 32, 2, 8)
    monkeypatch.setattr(Builds, "built", built)
    methods, models = (Builds(),), (Models(info, info),)
    member = ActiveMethod("builds", Schedule.parse(1), methods, models, torch.Generator())
    with pytest.raises(PluginError, match=rf"Builds.build_modules {message}"):
        Objective([member]).build_modules(0)
