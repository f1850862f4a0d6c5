"""Options are validated with their defaults, and methods know what their models are for."""

from __future__ import annotations

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from gkd_core.api import (
    DataInfo,
    Method,
    MethodError,
    Models,
    PluginError,
    Procedure,
    Schedule,
    Share,
    Temperature,
    hookimpl,
)
from gkd_core.contract.model_info import ModelInfo


class Options(Method.Config):
    """Options whose defaults are texts."""

    rate: Schedule = Field("linear(0 -> 1, over=50%)", description="A share.")
    temperature: Temperature = Field(2, description="T.")


class Texts(Method):
    """Compares nothing."""

    name = "texts"
    paper = "A test"
    Config = Options

    def check(self, models):
        SEEN.append(models)

    def reads(self, models, step):
        return ["student.logits"]

    def loss(self, student, teacher, batch, step):
        return {"texts": student.logits.square().mean(-1)}


SEEN = []


class Plugin:
    @hookimpl
    def gkd_register_methods(self):
        return [Texts]


def test_a_schedule_can_be_given_as_text():
    config = Texts().config
    assert config.rate == Schedule("linear", 0.0, 1.0, 0.5)
    assert config.temperature.at(3, 10) == 2.0
    assert config.model_dump(mode="json") == {
        "rate": "linear(0 -> 1, over=50%)",
        "temperature": 2.0,
    }

    class Stages(Procedure):
        name = "stages"

        class Config(Procedure.Config):
            rate: Schedule = Field("cosine(1 -> 0)", description="A share.")

    assert Stages().config.rate.at(0, 2) == 1


def test_a_share_stays_from_0_to_1():
    share = TypeAdapter(Share)
    assert share.validate_python("linear(0 -> 1)").at(1, 2) == 0.5
    for wrong in (-0.1, 1.5, "linear(0 -> 2)", "step(-1 -> 1)"):
        with pytest.raises(ValidationError, match="must stay from 0 to 1, got"):
            share.validate_python(wrong)


@pytest.mark.parametrize(
    ("default", "message"),
    [
        (
            "linear(0 - 1)",
            r"default of option `temperature`: .*'linear\(0 - 1\)' is neither",
        ),
        (0, r"default of option `temperature`: .*must stay above 0, got 0"),
    ],
)
def test_a_default_that_is_no_value_is_refused_with_the_class(default, message):
    with pytest.raises(PluginError, match=message):

        class Wrong(Method):
            """Compares nothing."""

            name = "wrong"
            paper = "A test"

            class Config(Method.Config):
                temperature: Temperature = Field(default, description="T.")


def test_methods_know_the_kind_and_the_data(prepare_run, registry_with):
    SEEN.clear()
    registry = registry_with(Plugin())
    prepare_run("method=texts", "task.rows=24", registry=registry)
    assert [(m.kind, m.data) for m in SEEN] == [
        ("classification", DataInfo(24, ("neg", "pos"))),
    ]
    SEEN.clear()
    prepare_run("method=texts", "task.kind=lm", teachers=("lm-teacher",), registry=registry)
    (models,) = SEEN
    assert (models.kind, models.data) == ("masked-lm", DataInfo(96, ()))


def test_a_teacher_is_not_optional_where_one_is_declared():
    student, teacher = (
        ModelInfo(name, "bert", 2, 32, 4, 4, 8, 64, 100, 2, 64) for name in ("student", "teacher")
    )
    assert Models(student, teacher).pair == (student, teacher)
    with pytest.raises(MethodError, match="declare teachers = 'one'"):
        _ = Models(student, None).pair
