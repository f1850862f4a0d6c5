"""Numbers worked out by hand with pseudo-classifiers that change nothing.

The student's only intermediate layer predicts (1, 0), the teacher's (ln 3, 0) and (0, 1). The dot
products are ln 3 and 0, so that the mixture is (3/4 ln 3, 1/4).
"""

import json
from math import exp, log

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gkd_core.api import MethodError, ModelInfo, Models
from gkd_methods_intermediate.universal_kd import UniversalKD

STUDENT, ONE, TWO = torch.tensor([[[1.0, 0]], [[log(3), 0]], [[0, 1]]], dtype=torch.float64)
LOGITS = {"student": torch.tensor([[0.0, 0.0]]), "teacher": torch.tensor([[2.0, 0.0]])}


def classifier(weight=((1, 0), (0, 1))):
    linear = nn.Linear(2, len(weight), bias=False).double()
    linear.weight.data = torch.tensor(weight).double()
    return linear


@pytest.fixture
def universal_kd(terms):
    """Terms for the `[B, D]` states of the student's intermediate layers and of the teacher's."""

    def _universal_kd(
        student=(STUDENT,), teacher=(ONE, TWO), heads=None, labels=None, logits=LOGITS, **options
    ):
        pooling = options.get("pooling", "cls")
        sides = {
            side: {f"hidden[{n}]|{pooling}": state for n, state in enumerate(states, start=1)}
            | {"logits": logits[side].double()}
            for side, states in (("student", student), ("teacher", teacher))
        }
        heads = heads or ([classifier() for _ in student], [classifier() for _ in teacher])
        modules = dict(zip(("student", "teacher"), map(nn.ModuleList, heads), strict=True))
        labels = torch.zeros(len(student[0]), dtype=torch.long) if labels is None else labels
        method = UniversalKD(UniversalKD.Config(**options))
        layers = len(student) + 1, len(teacher) + 1
        found = terms(method, *sides.values(), modules, layers=layers, labels=labels)
        return {name: value.item() for name, value in found.items()}

    return _universal_kd


def kl(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*logits):
    return [exp(x) / sum(map(exp, logits)) for x in logits]


def test_layers_are_compared_by_what_they_predict(universal_kd):
    found = universal_kd(gamma=1)
    mixture = softmax(0.75 * log(3), 0.25)
    assert found["intermediate"] == pytest.approx(kl(mixture, softmax(1, 0)), abs=1e-12)
    assert found["soft"] == 0


def test_the_teachers_pseudo_classifiers_learn_the_labels(universal_kd):
    found = universal_kd()["pseudo-classifiers"]
    assert found == pytest.approx((-log(3 / 4) - log(1 / (1 + exp(1)))) / 2, abs=1e-12)


def test_gamma_divides_between_predictions_and_layers(universal_kd):
    whole = universal_kd(gamma=1)["intermediate"]
    found = universal_kd(gamma=0.25)
    assert found["intermediate"] == pytest.approx(0.25 * whole)
    expected = 0.75 * kl(softmax(2, 0), (0.5, 0.5))
    assert found["soft"] == pytest.approx(expected, abs=1e-12)
    assert universal_kd(gamma=0)["intermediate"] == 0


@pytest.mark.parametrize("gamma", [-0.1, "linear(0.5 -> 2)"])
def test_gamma_that_would_give_a_term_a_negative_weight_is_refused(gamma):
    with pytest.raises(ValidationError, match="must stay from 0 to 1"):
        UniversalKD.Config(gamma=gamma)


def test_the_temperature_is_that_of_the_predictions(universal_kd):
    found = universal_kd(temperature=2, gamma=0)
    assert found["soft"] == pytest.approx(4 * kl(softmax(1, 0), (0.5, 0.5)), abs=1e-12)
    warm, cold = universal_kd(temperature=2), universal_kd()
    assert warm["intermediate"] == cold["intermediate"]


def test_a_constant_added_to_a_prediction_changes_nothing(universal_kd):
    expected = kl(softmax(log(3), 0), softmax(1, 0))
    for student, teacher in ((STUDENT + 5, ONE), (STUDENT, ONE - 2)):
        found = universal_kd((student,), (teacher,), gamma=1)["intermediate"]
        assert found == pytest.approx(expected, abs=1e-12)


def test_equal_teacher_layers_are_the_mixture_whatever_the_student_is(universal_kd):
    found = universal_kd((-3 * STUDENT,), (ONE, ONE, ONE), gamma=1)["intermediate"]
    assert found == pytest.approx(kl(softmax(log(3), 0), softmax(-3, 0)), abs=1e-12)


def test_the_order_of_teacher_layers_and_their_classifiers_means_nothing(universal_kd):
    learned, (first, second) = [classifier()], (classifier(((1, 2), (0, 1))), classifier())
    one = universal_kd(teacher=(ONE, TWO), heads=(learned, [first, second]))
    other = universal_kd(teacher=(TWO, ONE), heads=(learned, [second, first]))
    assert all(one[name] == pytest.approx(other[name]) for name in one)


def test_layers_are_added_and_those_of_the_teacher_averaged_for_the_labels(universal_kd):
    one, two = universal_kd(), universal_kd((STUDENT, STUDENT), (ONE, TWO, ONE, TWO))
    single = universal_kd(teacher=(ONE, TWO, ONE, TWO))
    assert two["intermediate"] == pytest.approx(2 * single["intermediate"])
    assert two["pseudo-classifiers"] == pytest.approx(one["pseudo-classifiers"])


def test_values_are_fitted_by_their_squares(universal_kd):
    """A regression: u_s = 1, u_t = ln 3 and 0, weights 3/4 and 1/4, value 2."""
    heads = [classifier(((1, 0),))], [classifier(((1, 0),)), classifier(((1, 0),))]
    logits = {"student": torch.zeros(1, 1), "teacher": torch.ones(1, 1)}
    values = torch.tensor([2.0], dtype=torch.float64)
    found = universal_kd(heads=heads, labels=values, logits=logits)
    assert found["soft"] == 0.5
    assert found["intermediate"] == pytest.approx(0.5 * (1 - 0.75 * log(3)) ** 2, abs=1e-12)
    assert found["pseudo-classifiers"] == pytest.approx(((2 - log(3)) ** 2 + 4) / 2)


def test_the_teachers_classifiers_do_not_learn_to_be_imitated(trial):
    universal = trial("universal-kd", layers=(3, 4))
    found, modules = universal.terms(), universal.method.modules
    (found["soft"] + found["intermediate"]).backward()
    assert all(parameter.grad is None for parameter in modules["teacher"].parameters())
    assert all(p.grad.abs().sum() > 0 for p in modules["student"].parameters())
    before = [p.grad.clone() for p in modules["student"].parameters()]
    universal.terms()["pseudo-classifiers"].backward()
    assert all(p.grad.abs().sum() > 0 for p in modules["teacher"].parameters())
    assert all(map(torch.equal, before, [p.grad for p in modules["student"].parameters()]))


@pytest.mark.exhaustive
def test_classifiers_that_are_all_zero_are_not_a_solution(trial):
    universal = trial("universal-kd")
    for parameter in universal.method.modules.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.SGD(universal.method.modules.parameters(), lr=0.02)
    found = universal.terms()
    assert (found["intermediate"], found["pseudo-classifiers"].item()) == (0, pytest.approx(log(3)))
    for _ in range(20):
        sum(universal.terms().values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert universal.terms()["pseudo-classifiers"] < 0.9 * log(3)
    assert all(p.abs().max() > 0 for p in universal.method.modules.parameters())


def test_the_last_block_learns_from_the_prediction_alone(trial):
    universal = trial("universal-kd", layers=(3, 4))
    blocks = universal.student.model.bert.encoder.layer
    universal.terms()["intermediate"].backward()
    assert [next(block.parameters()).grad is not None for block in blocks] == [True, True, False]
    universal.terms()["soft"].backward()
    assert next(blocks[2].parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("layers", "labels", "message"),
    [
        (1, 3, "'student' has one block"),
        (2, 100, "as large as the vocabulary"),
    ],
)
def test_models_without_layers_or_classes_are_refused(layers, labels, message):
    def info(name, layers, width=32):
        shape = (layers, width, 4, 4, 8, 64, 100, labels, 64)
        return ModelInfo(name, "bert", *shape, is_lm=labels == 100)

    with pytest.raises(MethodError, match=message):
        UniversalKD().check(Models(info("student", layers), info("teacher", 4)))
    other = Models(info("student", 2, 16), info("teacher", 4)) if labels == 3 else None
    if other is not None:
        UniversalKD().check(other)


def test_one_vector_of_each_layer_is_kept(invoke, settings):
    given = [*settings, "--set", "universal-kd.pooling=mean", "--json"]
    done = invoke("explain", "universal-kd", *given)
    assert done.code == 0, done.err
    (stage,) = json.loads(done.out)["stages"]
    for one in stage["passes"]:
        *states, logits = one["captures"]
        layers = 3 if one["model"] == "teacher" else 1
        assert [c["path"] for c in states] == [f"hidden[{n}]|mean" for n in range(1, layers + 1)]
        assert {capture["bytes"] for capture in states} == {16 * 32 * 4}
        assert logits["bytes"] == 16 * 2 * 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("teacher", ["teacher", "decoder"])
def test_the_recipe_runs_and_leaves_the_classifiers_behind(
    invoke, settings, world, tmp_path, teacher
):
    from safetensors.torch import load_file

    output = tmp_path / "run"
    given = [*settings[4:], "--teacher", world / teacher, "--set", "training.steps=2"]
    done = invoke("run", "--recipe", "universal-kd", *given, "--output", output)
    assert done.code == 0, done.err
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first = next(entry for entry in logged if entry["stage"] == "intermediate")
    for term in ("soft", "intermediate", "pseudo-classifiers"):
        assert first[f"loss/universal-kd.{term}"] > 0
    assert any("loss/hard" in entry for entry in logged if entry["stage"] == "labels")
    weights, known = (
        load_file(folder / "model.safetensors") for folder in (output / "student", world / teacher)
    )
    assert set(weights) < set(known)


@pytest.mark.exhaustive
def test_another_width_needs_no_other_option(invoke, settings, tmp_path):
    narrow = ("--set", "student.hidden_size=16", "--set", "student.heads=2")
    fresh = ("--set", "student.init=random", "--set", "training.steps=2")
    given = [*settings, *narrow, *fresh, "--output", tmp_path / "run"]
    assert invoke("run", "--method", "universal-kd+hard", *given).code == 0
