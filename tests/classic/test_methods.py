"""Properties that all methods of the package share."""

import json
from itertools import permutations

import pytest
import torch
from tests.grids import first_of

from gkd_core.api import Models, Schedule, Step
from gkd_core.contract.model_info import ModelInfo
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses import LinearLogits
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import registry
from gkd_core.testing import check_method
from gkd_core.testing.tiny import CLASSES, VOCABULARY, tiny_batch, tiny_model

METHODS = [name for name in registry().methods if registry().provider(name).name == "classic"]
ALIGNING = [name for name in METHODS if registry().method(name).aligns]
OF_ANSWERS = [
    n for n in METHODS if registry().method(n).on_policy or registry().method(n).other_prompts
]
ANYWHERE = [n for n in METHODS if n not in OF_ANSWERS and n not in ALIGNING]
COMBINATIONS = [
    "minilm+soft",
    "pkd+minilmv2+soft+hard",
    "distilbert+soft",
    "annealing-kd+pkd",
    "pd+minilm",
]
PRETRAINING = ["annealing-kd+soft", "glmd", "distilbert", "minilm", "minilmv2", "hard"]


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_properties_every_method_must_have(name):
    kinds = ["causal-lm"] if name in ALIGNING else ["classification", "causal-lm"]
    check_method(registry().method(name), {}, kinds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_it_has_them_on_all_its_kinds_with_each_option_at_its_edges(name):
    check_method(registry().method(name))


@pytest.mark.parametrize(
    ("name", "options"),
    first_of(
        [
            ("soft", {"divergence": "js", "beta": 0.3}),
            ("annealing-kd", {"max_temperature": 1, "reduction": "mean"}),
            ("continuation-kd", {"psi": 0.5, "margin": 0, "reduction": "mean"}),
            ("continuation-kd", {"labels_from": 0}),
            ("distilbert", {"kl_on": "targets", "temperature": 1}),
            ("glmd", {"temperature": "linear(15 -> 1)", "task_temperature": 4}),
            ("kd", {"alpha": "linear(1 -> 0)"}),
            ("minilm", {"teacher_layer": 2}),
            ("minilmv2", {"teacher_layer": 3, "relation_heads": 8, "key_weight": 0}),
            ("pkd", {"layers": "last"}),
            ("pkd", {"layers": [[1, 4]]}),
            ("pkd", {"reduction": "sum"}),
            ("soft", {"divergence": "reverse-kl"}),
            ("soft", {"divergence": "skew-kl", "alpha": 0.3}),
            ("soft", {"divergence": "skew-reverse-kl", "alpha": 0.3}),
            ("soft", {"divergence": "adaptive-kl"}),
            ("soft", {"divergence": "js", "beta": 0}),
            ("soft", {"divergence": "js", "beta": 1}),
            ("soft", {"divergence": "total-variation"}),
            ("soft", {"divergence": "soft-cross-entropy", "scale_t2": False}),
        ],
        3,
    ),
)
def test_it_has_them_with_other_options(name, options):
    check_method(registry().method(name), options, ["classification", "causal-lm"])


@pytest.mark.parametrize("name", ["distilbert", "glmd", "hard", "kd", "pd", "soft"])
def test_the_logits_of_a_language_model_are_not_computed_as_a_whole(name, monkeypatch):
    monkeypatch.setattr(LinearLogits, "dense", lambda self: pytest.fail("they are"))
    check_method(registry().method(name), {}, ["causal-lm"])


def gradient(names, kind):
    """Return total and gradient of the sum of methods, written in this order."""
    student_model, teacher_model = tiny_model(kind, 2, seed=1), tiny_model(kind, 4, seed=2)
    student, teacher = (Extractor(m, find_sites(m)) for m in (student_model, teacher_model))
    width = VOCABULARY if kind == "causal-lm" else CLASSES
    shapes = [
        ModelInfo.read(name, model.config, width)
        for name, model in (("student", student_model), ("teacher", teacher_model))
    ]
    members = []
    for name in names:
        method = registry().method(name)()
        models = Models(shapes[0], None if method.teachers == "none" else shapes[1])
        members.append(
            ActiveMethod(name, Schedule.parse(0.3), (method,), (models,), torch.Generator())
        )
    objective = Objective(members)
    objective.build_modules(seed=0)
    batch, step = tiny_batch(kind), Step(3, 10, 0, "test", torch.Generator())
    plan = objective.plan(step)
    terms = objective.terms(run_passes(plan, student, [teacher], batch, step), batch, step, plan)
    total = objective.total(terms, batch.counts(), step)
    total.backward()
    parameters = (p.grad for p in student_model.parameters() if p.grad is not None)
    return torch.cat([total.detach()[None], *(slope.flatten() for slope in parameters)])


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
@pytest.mark.parametrize("expression", COMBINATIONS)
def test_the_order_of_methods_changes_no_bit(expression, kind):
    names = expression.split("+")
    first, *others = (gradient(order, kind) for order in permutations(names))
    assert first.dtype == torch.float64
    assert first.abs().sum() > 0
    assert all(torch.equal(first, other) for other in others)


def run(invoke, output, *arguments):
    """Train for two steps from the command line and return what was logged."""
    done = invoke("run", *arguments, "--set", "training.steps=2", "--output", output)
    assert done.code == 0, done.err
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "expression",
    [
        *COMBINATIONS[:2],
        # The recipe of each method runs it, too.
        *(pytest.param(e, marks=pytest.mark.exhaustive) for e in [*ANYWHERE, *COMBINATIONS[2:]]),
    ],
)
def test_a_run_ends(invoke, settings, tmp_path, expression):
    assert run(invoke, tmp_path / "run", "--method", expression, *settings)


@pytest.mark.parametrize(
    "expression",
    [*PRETRAINING[:2], *(pytest.param(e, marks=pytest.mark.exhaustive) for e in PRETRAINING[2:])],
)
def test_a_run_of_masked_language_modeling_ends(invoke, world, tmp_path, expression):
    corpus = world / "corpus.txt"
    assert run(
        invoke,
        tmp_path / "run",
        *("--method", expression, "--teacher", world / "lm-teacher", "--student-layers", 2),
        *("--data", corpus, "--set", f"task.validation={corpus}", "--set", f"task.test={corpus}"),
        *("--set", "task.kind=lm", "--set", "task.max_length=32"),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minilm", "student.heads=2", "student.init=random"], "student has 2 attention heads"),
        (["minilm", "minilm.teacher_layer=5"], "teacher.attention[5], but the teacher"),
        (["minilmv2", "minilmv2.relation_heads=7"], "Set minilmv2.relation_heads=4"),
        (["distilbert", "student.hidden_size=16", "student.heads=2"], "has hidden size 16"),
        (["soft", "soft.temperature=0"], "soft.temperature: must stay above 0"),
        (["soft", "soft.divergence=jsd"], "soft.divergence must be 'kl', 'reverse-kl', 'js'"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_are_read(
    invoke, settings, monkeypatch, arguments, message
):
    method, *values = arguments
    monkeypatch.setattr("gkd_core.runs.run.build_stage", lambda *_: pytest.fail("too late"))
    given = [part for value in values for part in ("--set", value)]
    done = invoke("run", "--method", method, *settings, *given)
    assert done.code == 2
    assert message in done.err
