"""Files of settings that are made to break their reader are refused at once, with one message."""

import os
import time

import pytest

from gkd_core.cli.errors import LONGEST, printable
from gkd_core.config.resolve import resolve
from gkd_core.config.settings import read_assignment, read_file
from gkd_core.distributed.rank_info import read_launcher_env
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry


def _bomb(join):
    levels = [f"a{n}: &a{n} {join(n)}" for n in range(1, 30)]
    return "a0: &a0 {x: 1}\n" + "\n".join(levels) + "\n"


HOSTILE = {
    "deep.json": '{"a":' * 100_000,
    "deep-list.json": '{"a":' + "[" * 100_000,
    "deep.yaml": "a: " + "[" * 5_000,
    "deep-blocks.yaml": "\n".join(" " * n + "a:" for n in range(1500)),
    "deep.toml": "a = " + "[" * 50_000,
    "deep-key.toml": "a" + ".a" * 50_000 + " = 1",
    "digits.json": '{"seed": ' + "9" * 5000 + "}",
    "digits.yaml": "seed: " + "9" * 5000,
    "digits.toml": "seed = " + "9" * 5000,
    "date.yaml": "seed: 2026-99-99",
    "number.yaml": "seed: !!int abc",
    "aliases.yaml": _bomb(lambda n: f"[*a{n - 1}, *a{n - 1}]"),
    "merged.yaml": _bomb(lambda n: f"{{b: *a{n - 1}, <<: [*a{n - 1}, *a{n - 1}]}}"),
    "long.toml": "# " + "x" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    path.write_text(HOSTILE[name])
    begun = time.process_time()
    with pytest.raises(ConfigError, match=name):
        read_file(path)
    assert time.process_time() - begun < 10


def test_lines_of_a_long_text_are_not_searched_for_ever(tmp_path):
    path = tmp_path / "long.toml"
    path.write_text('seed = 7\nmethod = """\n' + "x" * 30 + "\n" * 100_000 + '"""\n')
    begun = time.process_time()
    seed, _ = read_file(path)
    assert time.process_time() - begun < 10
    assert (seed.value, seed.origin.line) == (7, 1)


def test_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="cannot read the configuration file: it is not"):
        read_file(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    "setting", ["seed=9223372036854775808", "training.beta1=1", "training.beta2=1.0"]
)
def test_value_that_no_generator_or_optimizer_takes_is_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        resolve(registry(), settings=[setting])


def test_key_of_many_parts_is_refused():
    with pytest.raises(ConfigError, match="the key has more than 100 parts"):
        read_assignment("a" + ".a" * 5000 + "=1")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_hostile_assignment_is_refused(value):
    with pytest.raises(ConfigError, match="the value cannot be read"):
        read_assignment(f"seed={value}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RANK", "abc"), ("RANK", "2"), ("RANK", "-1"), ("RANK", "\u0661"), ("RANK", "")),
        *(("WORLD_SIZE", "0"), ("WORLD_SIZE", "9" * 5000), ("MASTER_PORT", "99999")),
        *(("LOCAL_RANK", "7"), ("LOCAL_RANK", "1.0")),
    ],
)
def test_impossible_variable_of_a_launcher_is_refused(name, value):
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    with pytest.raises(ConfigError, match=f"{name} = .* in the environment is not a number from"):
        read_launcher_env(given | {name: value})


def test_message_cannot_steer_the_terminal_and_is_short():
    assert printable("a\x1b[2J\tb\nc\u202e é") == "a\\x1b[2J\\tb\nc\\u202e é"
    shown = printable("begin" + "x" * 100_000 + "end")
    assert len(shown) <= LONGEST
    assert shown.startswith("beginx")
    assert shown.endswith("xend")
    assert " [...] " in shown
