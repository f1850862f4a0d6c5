"""Numbers worked out by hand for h_s = (1, 0), h_t^1 = (ln 3, 0) and h_t^2 = (0, 1).

The dot products are ln 3 and 0, so that the weights are 3/4 and 1/4 and the mixture is
(3/4 ln 3, 1/4).
"""

import json
from math import log

import pytest
import torch

from gkd_core.api import MethodError, ModelInfo, Models
from gkd_methods_intermediate.alp_kd import ALPKD, attend_layers

STUDENT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[[log(3), 0.0], [0.0, 1.0]]], dtype=torch.float64)


@pytest.fixture
def alp_kd(terms):
    """The loss for `[B, D]` states of one or more student layers and of teacher layers."""

    def _alp_kd(*students, teacher=TEACHER):
        learned = {f"hidden[{n}]|cls": state for n, state in enumerate(students, start=1)}
        known = {f"hidden[{n}]|cls": t for n, t in enumerate(teacher.unbind(1), start=1)}
        layers = len(students), teacher.shape[1]
        return terms(ALPKD(), learned, known, layers=layers)["alp-kd"]

    return _alp_kd


def test_a_layer_is_compared_with_the_mixture_it_attends_to(alp_kd):
    mixture = attend_layers(STUDENT[:, None], TEACHER)
    assert mixture.flatten().tolist() == pytest.approx([0.75 * log(3), 0.25], abs=1e-12)
    expected = ((1 - 0.75 * log(3)) ** 2 + 0.25**2) / 2
    assert alp_kd(STUDENT).item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.046745, abs=1e-6)


def test_layers_are_added_and_rows_averaged(alp_kd):
    one = alp_kd(STUDENT)
    assert alp_kd(STUDENT, STUDENT) == pytest.approx(2 * one)
    rows = torch.cat([STUDENT, torch.zeros_like(STUDENT)])
    other = alp_kd(torch.zeros_like(STUDENT))
    assert alp_kd(rows, teacher=TEACHER.expand(2, -1, -1)) == pytest.approx((one + other) / 2)


def test_the_order_of_teacher_layers_means_nothing(alp_kd):
    assert alp_kd(STUDENT, teacher=TEACHER.flip(1)) == pytest.approx(alp_kd(STUDENT))


@pytest.mark.parametrize("student", [STUDENT, -7 * STUDENT])
def test_equal_teacher_layers_are_the_mixture_whatever_the_student_is(alp_kd, student):
    teacher = TEACHER[:, :1].expand(-1, 3, -1)
    expected = (student - TEACHER[:, 0]).square().mean()
    assert alp_kd(student, teacher=teacher) == pytest.approx(expected)


def test_the_gradient_flows_through_the_weights(alp_kd):
    student = STUDENT.clone().requires_grad_()
    alp_kd(student).backward()
    # Along the first axis the weights move: a_1 = sigmoid(x ln 3), so that a_1' is 3/16 ln 3. With
    # constant weights the slope would be `first`.
    first, second = 1 - 0.75 * log(3), -0.25
    drift = 3 / 16 * log(3)
    expected = first * (1 - drift * log(3)) + second * drift
    assert student.grad[0, 0].item() == pytest.approx(expected, abs=1e-12)
    assert (expected, first) == pytest.approx((0.084705, 0.176041), abs=1e-6)


def test_weights_are_in_full_precision_under_autocast(alp_kd):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = alp_kd(STUDENT.float(), teacher=TEACHER.float())
    assert found.item() == pytest.approx(0.046745, abs=1e-6)


def test_models_of_different_width_are_refused():
    def info(name, width):
        return ModelInfo(name, "bert", 2, width, 4, 4, 8, 64, 100, 2, 64)

    with pytest.raises(MethodError, match=r"size 16 and the teacher 'large' 32\. .*student.hid"):
        ALPKD().check(Models(info("student", 16), info("large", 32)))


def test_all_layers_are_read_and_one_vector_of_each_is_kept(invoke, settings):
    done = invoke("explain", "alp-kd", *settings, "--json")
    assert done.code == 0, done.err
    (stage,) = json.loads(done.out)["stages"]
    for one in stage["passes"]:
        layers = 4 if one["model"] == "teacher" else 2
        paths = [capture["path"] for capture in one["captures"]]
        assert paths == [f"hidden[{n}]|cls" for n in range(1, layers + 1)]
        # 16 rows of width 32 in fp32, not times 32 positions.
        assert {capture["bytes"] for capture in one["captures"]} == {16 * 32 * 4}


@pytest.mark.exhaustive
@pytest.mark.parametrize("teacher", ["teacher", "decoder"])
def test_the_recipe_runs_with_encoders_and_decoders(invoke, settings, world, tmp_path, teacher):
    given = [*settings[4:], "--teacher", world / teacher, "--set", "training.steps=2"]
    done = invoke("run", "--recipe", "alp-kd", *given, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    parts = {name: entry[f"loss/{name}"] for name in ("hard", "soft", "alp-kd")}
    total = 0.1 * parts["hard"] + 0.7 * parts["soft"] + 0.2 * parts["alp-kd"]
    assert entry["loss/total"] == pytest.approx(total, rel=1e-5)
