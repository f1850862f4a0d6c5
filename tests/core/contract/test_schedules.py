import math

import pytest
from pydantic import BaseModel, ValidationError

from gkd_core.contract.schedule import Schedule
from gkd_core.contract.step import Step


class Options(BaseModel):
    weight: Schedule = Schedule.parse(1.0)


def test_number_is_constant():
    schedule = Schedule.parse(0.5)
    assert [schedule.at(step, 10) for step in (0, 5, 99)] == [0.5, 0.5, 0.5]


def test_a_step_says_where_training_stands():
    step = Step(3, 4, 0, "test", None)
    assert Schedule.parse("linear(1 -> 3)").at(step) == 2.5


def test_number_text_is_constant():
    assert Schedule.parse(" 1e-5 ") == Schedule.parse(1e-5)


def test_linear_goes_straight_to_end():
    schedule = Schedule.parse("linear(1 -> 3)")
    assert [schedule.at(step, 4) for step in range(6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]


def test_cosine_is_half_way_in_the_middle():
    schedule = Schedule.parse("cosine(1 -> 0, over=1000)")
    assert schedule.at(500, 10**6) == pytest.approx(0.5)
    assert schedule.at(250, 10**6) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert schedule.at(2000, 10**6) == pytest.approx(0.0)


def test_step_jumps_at_its_share():
    schedule = Schedule.parse("step(0 -> 1, over=50%)")
    assert [schedule.at(step, 10) for step in (0, 4, 5, 9)] == [0.0, 0.0, 1.0, 1.0]


def test_share_follows_length_of_stage_and_steps_do_not():
    share = Schedule.parse("linear(0 -> 1, over=50%)")
    steps = Schedule.parse("linear(0 -> 1, over=50)")
    assert (share.at(25, 100), share.at(25, 200)) == (0.5, 0.25)
    assert (steps.at(25, 100), steps.at(25, 200)) == (0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "0.1234567891",
        "linear(0.1234567891 -> -2.5e-09)",
        "cosine(1 -> 0, over=1234567)",
        "step(0 -> 1, over=66%)",
        "linear(0 -> 1, over=7%)",
        "linear(0 -> 1, over=33.3333333%)",
    ],
)
def test_text_reads_back_as_the_same_schedule(text):
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", False), ("linear(0 -> 0)", False), ("step(0 -> 1)", True), ("linear(1 -> 0)", True)],
)
def test_a_schedule_is_ever_nonzero_if_one_end_is(text, expected):
    assert Schedule.parse(text).is_ever_nonzero is expected


def test_text_is_short():
    assert str(Schedule.parse("linear( 10->1 ,over = 66 % )")) == "linear(10 -> 1, over=66%)"
    assert str(Schedule.parse(20)) == "20"


@pytest.mark.parametrize(
    "text", ["", "ten", "linear(0, 1)", "ramp(0 -> 1)", "linear(0 -> 1, over=)", "linear(0 -> 1"]
)
def test_text_that_is_no_schedule_is_refused(text):
    with pytest.raises(ValueError, match="neither a number nor a schedule"):
        Schedule.parse(text)


@pytest.mark.parametrize("over", ["0", "0%", "-5"])
def test_ramp_without_length_is_refused(over):
    with pytest.raises(ValueError, match="greater than 0"):
        Schedule.parse(f"linear(0 -> 1, over={over})")


@pytest.mark.parametrize("value", [math.inf, math.nan, "1e999", "linear(0 -> 1e999)"])
def test_endless_value_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        Schedule.parse(value)


def test_field_takes_numbers_and_texts_and_writes_them_back():
    for value in (2, 0.5, "linear(0 -> 1, over=50%)"):
        assert Options.model_validate_json(Options(weight=value).model_dump_json()).weight == (
            Schedule.parse(value)
        )
    assert Options(weight="0.5").model_dump() == {"weight": 0.5}


@pytest.mark.parametrize("value", [True, None, [1], "soon"])
def test_field_refuses_other_values(value):
    with pytest.raises(ValidationError):
        Options(weight=value)


def test_field_has_a_json_schema():
    schema = Options.model_json_schema()["properties"]["weight"]
    assert schema["anyOf"] == [{"type": "number"}, {"type": "string"}]
