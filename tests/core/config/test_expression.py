import pytest

from gkd_core.config.expression import parse_expression
from gkd_core.contract.schedule import Schedule
from gkd_core.errors import ConfigError


def weights(text):
    return {member.name: member.weight for member in parse_expression(text).members}


def place(text, origin=""):
    """Return the character under the caret, and the first line of the message."""
    with pytest.raises(ConfigError) as error:
        parse_expression(text, origin)
    first, shown, caret = str(error.value).split("\n")
    assert shown == f"    {text}"
    return caret.index("^") - 4, first


def test_sum_keeps_order_and_weights_are_one():
    expression = parse_expression("pkd+annealing-kd + minilmv2")
    assert expression.names == ("pkd", "annealing-kd", "minilmv2")
    assert all(member.weight == Schedule.parse(1) for member in expression.members)


def test_numbers_weigh_methods():
    assert weights("2*pkd + .5 * soft") == {"pkd": Schedule.parse(2), "soft": Schedule.parse(0.5)}


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1e+3", 1e3), ("2.5E1", 25), ("0", 0)]
)
def test_exponents_are_part_of_the_weight(text, value):
    assert weights(f"{text}*pkd+soft")["pkd"] == Schedule.parse(float(value))


def test_schedules_weigh_methods():
    text = "linear(0 -> 1e+1, over=50%)*soft + cosine(1->0,over=100) * hard+pkd"
    assert weights(text) == {
        "soft": Schedule.parse("linear(0 -> 10, over=50%)"),
        "hard": Schedule.parse("cosine(1 -> 0, over=100)"),
        "pkd": Schedule.parse(1),
    }


def test_parentheses_belong_to_a_combiner_and_weigh_inside_and_outside():
    expression = parse_expression("2*mt-bert(pkd + .5*soft)+hard")
    assert expression.names == ("pkd", "soft", "hard")
    (group,) = expression.groups
    assert (group.combiner, group.weight) == ("mt-bert", Schedule.parse(2))
    assert [(m.name, m.weight) for m in group.members] == [
        ("pkd", Schedule.parse(1)),
        ("soft", Schedule.parse(0.5)),
    ]
    assert expression.group_of("soft") is group
    assert expression.group_of("hard") is None


def test_column_is_that_of_the_name():
    assert [member.column for member in parse_expression("2*pkd + soft").members] == [2, 8]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" pkd+ soft ", "pkd+soft"),
        ("1.0*pkd+2.50*soft", "pkd+2.5*soft"),
        ("linear(0->1)*soft+ hard", "linear(0 -> 1, over=100%)*soft+hard"),
        ("1e-3*pkd", "0.001*pkd"),
        ("0.123456789*pkd", "0.123456789*pkd"),
        ("average( soft )", "average(soft)"),
        ("2.0*tmkd(0.5 * soft+hard)+pkd", "2*tmkd(0.5*soft+hard)+pkd"),
        (
            "linear(0 -> 1)*average(step(0 -> 1)*soft)",
            "linear(0 -> 1, over=100%)*average(step(0 -> 1, over=100%)*soft)",
        ),
    ],
)
def test_text_is_the_normal_form_and_reads_back_equal(text, normal):
    expression = parse_expression(text)
    assert str(expression) == normal
    assert parse_expression(normal) == expression


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 0, "name is missing"),
        ("  ", 2, "name is missing"),
        ("pkd+", 4, "name is missing"),
        ("+pkd", 0, "name is missing"),
        ("pkd++soft", 4, "name is missing"),
        ("2*", 2, "name is missing"),
        ("2*3*pkd", 2, "'3' is not a weight"),
        ("2pkd", 1, "expected '*' between the weight 2"),
        ("pkd*2", 0, "'pkd' is not a weight"),
        ("soft+inf*pkd", 5, "'inf' is not a weight"),
        ("1e999*pkd", 0, "finite"),
        ("soft+-1*pkd", 5, "weight -1 is negative"),
        ("linear(1 -> -1)*pkd", 0, "negative"),
        ("soft+ramp(0 -> 1)*pkd", 5, "neither a number nor a schedule"),
        ("linear(0 > 1)*pkd", 0, "neither a number nor a schedule"),
        ("linear(0 -> 1)+pkd", 14, "expected '*'"),
        ("pkd+soft+pkd", 9, "'pkd' occurs twice"),
        ("pkd soft", 4, "expected '+'"),
        ("pkd & soft", 4, "expected '+'"),
        ("(pkd)", 0, "name is missing"),
        ("soft+PKD", 5, "'PKD' is not a method name"),
        ("pkd--x", 0, "'pkd--x' is not a method name"),
        ("average()", 8, "name is missing"),
        ("average(soft", 12, "expected '+' or ')' after a method of average"),
        ("average(soft pkd)", 13, "expected '+' or ')'"),
        ("average(soft))", 13, "expected '+'"),
        ("average(tmkd(soft))", 8, "takes methods, not another combiner"),
        ("soft+average(soft)", 13, "'soft' occurs twice"),
        ("average(soft)+average(pkd)", 14, "'average' occurs twice"),
        ("average(soft)*2", 0, "neither a number nor a schedule"),
    ],
)
def test_mistake_is_pointed_at(text, column, reason):
    found, message = place(text)
    assert reason in message
    assert found == column


def test_mistake_tells_its_origin():
    assert place("pkd+", "run.toml:3")[1].startswith("method expression (run.toml:3): ")


def test_line_breaks_do_not_move_the_caret():
    with pytest.raises(ConfigError) as error:
        parse_expression("pkd+\n soft+")
    assert str(error.value).split("\n")[1:] == ["    pkd+  soft+", " " * 15 + "^"]
