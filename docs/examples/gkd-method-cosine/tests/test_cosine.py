from dataclasses import replace

from gkd_method_cosine import Cosine

from gkd_core.api import ModelInfo, Models
from gkd_core.testing import check_method, tiny_model


def test_cosine_has_the_properties_every_method_must_have() -> None:
    check_method(Cosine)
    check_method(Cosine, {"layers": [[1, 4], [2, 4]]})


def test_cosine_projects_where_the_widths_differ() -> None:
    teacher = ModelInfo.read("teacher", tiny_model("classification", 4, seed=0).config, labels=3)
    student = replace(teacher, name="student", hidden_size=16)
    weight = Cosine().build_modules(Models(student, teacher))["project"].weight
    assert weight.shape == (32, 16)
