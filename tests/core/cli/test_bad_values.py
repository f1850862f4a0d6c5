"""Bad values of all that can be set are refused shortly, at once, before a file is written."""

import pytest
from tests.core.cli.bad_values import options, settings
from tests.grids import first_of

SETTINGS, OPTIONS = dict(settings()), list(options())


def _run(world, key, value):
    base = ["--teacher", world / "teacher", "--student-layers", 2, "--no-baseline"]
    data = ["--data", world / "train.jsonl", "--set", "task.max_length=32"]
    place = [] if key == "output.dir" else ["--output", "out"]
    return ["run", *base, *data, *place, "--set", f"{key}={value}"]


def _check(refuse, cases):
    answers = {name: refuse(*arguments) for name, arguments in cases.items()}
    assert {name: wrong for name, wrong in answers.items() if wrong} == {}


def _nth(values, number):
    """Return one of the values, another for each number."""
    name = sorted(values)[number % len(values)]
    return name, values[name]


@pytest.mark.parametrize("turn", first_of(range(24)))
def test_bad_value_of_a_setting_is_refused(refuse, world, turn):
    chosen = {
        key: _nth(values, turn + place) for place, (key, values) in enumerate(SETTINGS.items())
    }
    _check(refuse, {(key, name): _run(world, key, value) for key, (name, value) in chosen.items()})


@pytest.mark.parametrize("turn", first_of(range(16)))
def test_bad_value_of_an_option_is_refused(refuse, world, turn):
    model = ["--teacher", world / "teacher", "--student-layers", 2]
    base = {"plan": [*model, "--data", world / "train.jsonl", "--set", "task.max_length=32"]}
    cases = {}
    for place, (path, option, values) in enumerate(OPTIONS):
        name, value = _nth(values, turn + place)
        cases[*path, option, name] = [*path, *base.get(path[0], []), option, value]
    _check(refuse, cases)


def test_there_are_as_many_as_promised():
    assert sum(map(len, SETTINGS.values())) + sum(len(values) for *_, values in OPTIONS) > 1000
