"""Bad values of all that can be set are refused shortly, at once, before a file is written."""

import shutil
import signal
from contextlib import contextmanager

import pytest
from tests.core.cli.bad_values import options, settings
from tests.grids import first_of

from gkd_core.runs.run import Run

LONGEST = 2048
SECONDS = 10
SETTINGS, OPTIONS = dict(settings()), list(options())


@pytest.fixture
def refuse(invoke, world, tmp_path, monkeypatch):
    """Return what is wrong with the answer to a command; None if it is refused as it should be."""

    def execute(run):
        raise AssertionError("the run begins")

    monkeypatch.setattr(Run, "execute", execute)
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def _refuse(*arguments):
        try:
            with _in_time():
                done = invoke(*arguments)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            written = [path for path in tmp_path.iterdir() if path.name != "cache"]
            for path in written:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        wrong = {
            f"status {done.code}": done.code != 2,
            f"{len(done.err)} bytes": len(done.err.encode()) > LONGEST,
            "a traceback": "Traceback" in done.err,
            "control characters": any(not c.isprintable() and c != "\n" for c in done.err),
            "no error": "Error: " not in done.err,
            f"written: {[path.name for path in written]}": written,
        }
        found = [name for name, is_so in wrong.items() if is_so]
        return f"{', '.join(found)}: {done.err[-300:]}" if found else None

    return _refuse


@contextmanager
def _in_time():
    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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
