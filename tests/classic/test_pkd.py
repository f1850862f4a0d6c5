"""Numbers worked out by hand for h_s = (3, 4) and h_t = (1, 0).

Scaled to length one they are (3/5, 4/5) and (1, 0): squared distance 4/25 + 16/25 = 0.8.
"""

import pytest
import torch

from gkd_core.api import MethodError, ModelInfo, Models, Step
from gkd_methods_classic.pkd import PKD

STUDENT = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
TEACHER = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def pkd(terms):
    def _pkd(student=STUDENT, teacher=TEACHER, layers=(2, 4), **options):
        method = PKD(PKD.Config(**options))
        learned = {f"hidden[{n}]|cls": student for n in range(1, layers[0] + 1)}
        known = {f"hidden[{n}]|cls": teacher for n in range(1, layers[1] + 1)}
        return terms(method, learned, known, layers=layers)["pkd"].item()

    return _pkd


def reads(student, teacher, **options):
    def info(name, layers, width=768):
        return ModelInfo(name, "bert", layers, width, 12, 12, 64, 3072, 30522, 2, 512)

    models = Models(info("student", student), info("teacher", teacher))
    paths = list(PKD(PKD.Config(**options)).reads(models, Step(0, 1, 0, "", torch.Generator())))
    return paths[::2], paths[1::2]


def test_the_sum_is_equation_seven_and_the_mean_is_over_hidden_units(pkd):
    assert pkd(beta=1, reduction="sum") == pytest.approx(0.8, abs=1e-12)
    assert pkd(beta=1, reduction="mean") == pytest.approx(0.4, abs=1e-12)


def test_the_mean_is_over_layers_too_and_the_sum_adds_them(pkd):
    assert pkd(beta=1, reduction="mean", layers=(4, 8)) == pytest.approx(0.4, abs=1e-12)
    assert pkd(beta=1, reduction="sum", layers=(4, 8)) == pytest.approx(3 * 0.8, abs=1e-12)


def test_beta_multiplies_and_is_a_hundred_by_default(pkd):
    assert pkd() == pytest.approx(100 * 0.4, abs=1e-9)


def test_positive_rescaling_changes_nothing_and_turning_round_gives_the_largest_value(pkd):
    assert pkd(7 * STUDENT, 0.1 * TEACHER, beta=1) == pytest.approx(0.4, abs=1e-12)
    assert pkd(-5 * TEACHER, beta=1, reduction="sum") == pytest.approx(4, abs=1e-12)


def test_rows_are_averaged(pkd):
    rows = torch.cat([STUDENT, TEACHER])
    assert pkd(rows, TEACHER.expand(2, 2), beta=1) == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize(
    ("layers", "expected"), [("skip", [2, 4, 6, 8, 10]), ("last", [7, 8, 9, 10, 11])]
)
def test_the_papers_maps_pair_a_6_layer_student_with_12_layers(layers, expected):
    student, teacher = reads(6, 12, layers=layers)
    assert student == [f"student.hidden[{layer}]|cls" for layer in range(1, 6)]
    assert teacher == [f"teacher.hidden[{layer}]|cls" for layer in expected]


def test_pairs_may_be_listed():
    assert reads(6, 12, layers=[[1, 3], [6, 12]])[1] == [
        "teacher.hidden[3]|cls",
        "teacher.hidden[12]|cls",
    ]


@pytest.mark.parametrize(
    ("student", "message"),
    [((2, 64), "hidden size 64 and the teacher 'teacher' 32"), ((1, 32), "no layer")],
)
def test_models_that_cannot_be_compared_are_refused(student, message):
    def info(name, layers, width):
        return ModelInfo(name, "bert", layers, width, 4, 4, 8, 64, 100, 2, 64)

    with pytest.raises(MethodError, match=message):
        PKD().check(Models(info("student", *student), info("teacher", 4, 32)))
