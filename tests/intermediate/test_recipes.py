"""Every recipe of the package says where it comes from and runs its stages; what mixes sum."""

import json
from importlib.metadata import entry_points
from itertools import pairwise

import pytest
import torch
from tests.grids import first_of

from gkd_core.api import Models, Step
from gkd_core.config.expression import parse_expression
from gkd_core.config.resolve import resolve
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import GkdError
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import Registry, registry
from gkd_core.testing.tiny import VOCABULARY, tiny_batch, tiny_model

METHODS = {n for n in registry().methods if registry().provider(n).name == "intermediate"}
MIXES = ("bestc", "mix5")
STAGES = {
    "alp-kd": [("distil", "task", "0.1*hard+0.7*soft+0.2*alp-kd")],
    "bestc": [
        ("general", "text", "tinybert+minilmv2+glmd"),
        ("task-intermediate", "task", "tinybert+minilmv2"),
        ("task-prediction", "task", "soft"),
    ],
    "ckd": [("pretrain", "text", "hard"), ("task", "task", "0.1*hard+0.9*soft+ckd")],
    "diito": [("pretrain", "text", "diito"), ("task", "task", "hard")],
    "lrc-bert": [
        ("pretrain", "text", "hard"),
        ("contrast", "task", "lrc-bert"),
        ("task", "task", "lrc-bert"),
    ],
    "match": [("layers", "task", "match"), ("prediction", "task", "match")],
    "mgskd": [
        ("general", "text", "tinybert"),
        ("structure", "task", "mgskd"),
        ("prediction", "task", "soft"),
    ],
    "mix5": [
        ("general", "text", "soft+tinybert+minilm+minilmv2+distilbert"),
        ("task-intermediate", "task", "tinybert+minilm+minilmv2+distilbert"),
        ("task-prediction", "task", "2*kd+soft"),
    ],
    "mobilebert": [
        ("transfer", "text", "mobilebert"),
        ("distil", "text", "0.5*hard+0.5*soft"),
        ("task", "task", "hard"),
    ],
    "rail-kd": [("distil", "task", "0.3333*hard+0.3333*soft+0.3333*rail-kd")],
    "sid": [("distil", "task", "sid")],
    "theseus": [("distil", "task", "theseus")],
    "tinybert": [
        ("general", "text", "tinybert"),
        ("task-intermediate", "task", "tinybert"),
        ("task-prediction", "task", "soft"),
    ],
    "universal-kd": [("intermediate", "task", "universal-kd"), ("labels", "task", "hard")],
}
"""Name, what is learnt and the methods of each stage."""

START = {
    "alp-kd": "blocks 1, 2 of teacher",
    "ckd": "random weights",
    "diito": "blocks 2, 4 of teacher",
    "mobilebert": "fresh blocks between the embedding and the head of teacher",
    "sid": "blocks 2, 4 of teacher",
    "theseus": "blocks 1, 2 of teacher",
    "tinybert": "random weights",
    "bestc": "random weights",
    "mix5": "random weights",
}
TEXT = {"encoder": "masked-lm", "decoder": "causal-lm"}
"""What the stages on text learn, by the family of the teacher."""


def test_the_package_ships_a_recipe_for_each_of_its_methods_and_two_mixes():
    assert {*METHODS, *MIXES} == set(STAGES)
    assert set(STAGES) <= set(registry().recipes)


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("recipe", STAGES)
def test_a_recipe_says_what_it_is_and_has_the_stages_of_its_paper(draw, recipe, family):
    resolved, specs = draw(recipe, family)
    assert set(resolved.about) == {"title", "paper", "description"}
    assert not resolved.warnings
    kinds = {"text": TEXT[family], "task": "classification"}
    assert [(b.name, b.kind.name, str(b.expression)) for b in specs] == [
        (name, kinds[what], method) for name, what, method in STAGES[recipe]
    ]
    for before, spec in pairwise(specs):
        assert spec.follows is before
    assert {spec.student.layers for spec in specs} == {2}


@pytest.mark.parametrize("recipe", START)
def test_the_student_starts_as_in_the_paper(draw, recipe):
    _, (first, *_) = draw(recipe)
    assert first.start == START[recipe]


OWN_RUN = {
    *("ckd", "diito", "lrc-bert", "match", "mgskd", "mobilebert", "tinybert", "universal-kd")
}
"""Recipes that a test of their method runs."""


@pytest.mark.parametrize(
    "recipe",
    first_of(sorted(STAGES, key=OWN_RUN.__contains__)),
)
def test_a_recipe_runs_from_the_command_line(invoke, settings, teachers, tmp_path, recipe):
    given = settings[4:]  # without the teacher and the depth, which the recipe says
    given += [text for setting in teachers(recipe) for text in ("--set", setting)]
    output = tmp_path / "run"
    done = invoke(
        "run", "--recipe", recipe, *given, "--set", "training.steps=2", "--output", output
    )
    assert done.code == 0, done.err
    rows = json.loads((output / "results.json").read_text())["rows"]
    methods = " then ".join(method for _, _, method in STAGES[recipe])
    assert rows[-1]["name"] == f"student, {methods}"
    assert len(list(output.glob("stages/*/done.json"))) == len(STAGES[recipe])


@pytest.mark.parametrize(
    ("recipe", "labels"),
    [("bestc", [[], [], []]), ("mix5", [["distilbert"], ["distilbert"], ["kd"]])],
)
def test_one_member_of_a_mix_at_most_reads_labels(draw, recipe, labels):
    _, specs = draw(recipe)
    found = [[member.name for member in b.members if member.methods[0].needs_labels] for b in specs]
    assert found == labels


class Sum:
    """An expression on tiny models: its total, and the gradient of the student."""

    def __init__(self, options, kind):
        models = tiny_model(kind, 2, seed=1), tiny_model(kind, 4, seed=2)
        self.student, self.teacher = (Extractor(model, find_sites(model)) for model in models)
        self.batch = tiny_batch(kind)
        labels = VOCABULARY if kind == "causal-lm" else models[1].config.num_labels
        infos = (
            ModelInfo.read(name, model.config, labels, is_lm=kind == "causal-lm")
            for name, model in zip(("student", "teacher"), models, strict=True)
        )
        self.models, self.options = Models(*infos), options

    def of(self, *members):
        """Total and gradient of the weighted sum of some members of an expression."""
        found = []
        for member in members:
            method = registry().method(member.name)(self.options.get(member.name))
            generator = torch.Generator().manual_seed(0)
            found.append(
                ActiveMethod(member.name, member.weight, (method,), (self.models,), generator)
            )
        objective = Objective(found)
        objective.build_modules(seed=0)
        objective.modules.double()
        step = Step(0, 10, 0, "test", torch.Generator())
        plan = objective.plan(step)
        captured = run_passes(plan, self.student, [self.teacher], self.batch, step)
        terms = objective.terms(captured, self.batch, step, plan)
        total = objective.total(terms, self.batch.counts(), step)
        self.student.model.zero_grad()
        total.backward()
        slopes = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            for weight in self.student.model.parameters()
        ]
        return total.detach(), torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
@pytest.mark.parametrize("recipe", MIXES)
def test_a_mix_is_the_sum_of_its_members_each_as_it_is_alone(draw, recipe, kind):
    _, specs = draw(recipe)
    for spec in specs:
        members = parse_expression(str(spec.expression)).members
        mix = Sum(spec.config.options, kind)
        whole, gradient = mix.of(*members)
        alone = [mix.of(member) for member in members]
        torch.testing.assert_close(whole, torch.stack([total for total, _ in alone]).sum())
        expected = torch.stack([slope for _, slope in alone]).sum(0)
        # Norms of the decoder are computed in fp32.
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_a_mix_without_the_package_of_its_members_says_so(monkeypatch):
    monkeypatch.setenv("GKD_DISABLE_PLUGINS", "classic")
    with pytest.raises(GkdError) as refused:
        resolve(Registry(entry_points(group="gkd")), recipe="bestc")
    said = " ".join(str(refused.value).split())
    assert "method 'tinybert+minilmv2+glmd' (recipe bestc): unknown method 'minilmv2'" in said
    assert "GKD_DISABLE_PLUGINS leaves out classic" in said
