"""Whatever a reader is given, it returns a value or says what is wrong: it never breaks.

A few inputs in `make test`, 2,000 for each reader in `make test-all`, and new ones for two minutes
in `make test-fuzz`.
"""

import json
from contextlib import suppress

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")

from hypothesis import strategies as st  # noqa: E402
from tests.fuzzing import SECONDS, fuzz, fuzz_for  # noqa: E402

from gkd_core.config.expression import parse_expression  # noqa: E402
from gkd_core.config.settings import read_assignment, read_file  # noqa: E402
from gkd_core.contract.schedule import Schedule  # noqa: E402
from gkd_core.data.readers import READERS, read  # noqa: E402
from gkd_core.distributed.packing import pack, unpack  # noqa: E402
from gkd_core.errors import GkdError  # noqa: E402
from gkd_core.hooks.paths import parse_path  # noqa: E402
from gkd_core.training.manifest import Manifest  # noqa: E402

ALPHABET = "aZ_09 é\u0663\u2028\U0001f600\0\x1b\ud800\"'\\[]{}()<>.,:;=+-*/|#&!%@\t\r\n"
"""What a reader may stumble over; to list all characters takes hypothesis 8 s."""


def _made_of(*words):
    """Texts that consist of words of a language, with something else now and then."""
    other = st.text(ALPHABET, max_size=3)
    return st.lists(st.one_of(st.sampled_from(words), other), max_size=12).map("".join)


NUMBERS = ("0", "1", "-1", "1e9", "0.5", "9" * 400, "nan", "inf", "\u0663", "1e-400")
EXPRESSIONS = _made_of(
    *("pkd", "soft", "mt-bert", "linear", "average", "+", "*", "(", ")", "->", ",", "over=", "%"),
    *(" ", "-", *NUMBERS),
)
PATHS = _made_of(
    *("student", "teacher", ".", "hidden", "attention", "logits", "[", "]", "last", "*", ","),
    *("normed", "mean", "@", "(", ")", "main", *NUMBERS),
)
TOML = _made_of(
    *("seed", "training", ".", "lr", " = ", "[", "]", "[[", "]]", "\n", '"', "'", '"""', "{", "}"),
    *("true", "#", "\\", "\\u0000", "2026-01-02", "0x1", "stages", "method", ",", *NUMBERS),
)
YAML = _made_of(
    *("seed", ": ", "- ", "\n", "  ", "&a ", "*a", "<<", "!!int ", "!!python/name:os.system ", "{"),
    *("}", "[", "]", "|", ">", "? ", "---\n", "\t", "'", '"', "2026-99-99", "#", *NUMBERS),
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(ALPHABET, max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(ALPHABET, max_size=5), inner, max_size=4),
    ),
    max_leaves=12,
)
JSON = st.one_of(JSON_VALUES.map(json.dumps), _made_of("{", "}", "[", "]", '"a"', ":", *NUMBERS))
ROWS = _made_of(
    *('{"text": "a"', ', "label": ', "}", "\n", "text,label\n", "a,b\n", '"', "\t", "\r", "\0"),
    *("\ufeff", "\\ud800", "[", "]", "O B-PER\n", "-DOCSTART-", ",", "null", *NUMBERS),
)


def _file(folder, suffix, content):
    path = folder / f"input{suffix}"
    path.write_bytes(content.encode(errors="surrogatepass"))
    return path


def _load_manifest(folder, text):
    Manifest.load(_file(folder, ".json", text))


def _round_trip(folder, value):
    text = json.dumps(value)  # nan is not equal to itself
    assert json.dumps(unpack(pack(value))) == text


def _parse_schedule(text):
    with suppress(ValueError):  # pydantic makes an error of gkd of it
        Schedule.parse(text)


MANIFEST_KEYS = ("inputs", "models", "differences", "files", "digest")
READ = {
    "expression": (EXPRESSIONS, lambda folder, text: parse_expression(text)),
    "schedule": (EXPRESSIONS, lambda folder, text: _parse_schedule(text)),
    "path": (PATHS, lambda folder, text: parse_path(text, "test")),
    "setting": (TOML, lambda folder, text: read_assignment(f"training.{text}")),
    "toml": (TOML, lambda folder, text: read_file(_file(folder, ".toml", text))),
    "yaml": (YAML, lambda folder, text: read_file(_file(folder, ".yaml", text))),
    "json": (JSON, lambda folder, text: read_file(_file(folder, ".json", text))),
    **{
        f"rows{suffix}": (
            ROWS if suffix != ".json" else JSON,
            lambda folder, text, suffix=suffix: read(_file(folder, suffix, text)),
        )
        for suffix in READERS
        if suffix != ".parquet"
    },
    "parquet": (
        st.binary(max_size=60).map(lambda tail: f"PAR1{tail.hex()}PAR1"),
        lambda folder, text: read(_file(folder, ".parquet", text)),
    ),
    "manifest": (
        st.dictionaries(st.sampled_from(MANIFEST_KEYS), JSON_VALUES).map(json.dumps),
        _load_manifest,
    ),
    "message": (JSON_VALUES, _round_trip),
}


TARGETS = {
    "expressions": ("expression", "schedule"),
    "paths": ("path",),
    "config": ("setting", "toml", "yaml", "json"),
    "data": tuple(name for name in READ if name.startswith("rows") or name == "parquet"),
    "manifests": ("manifest", "message"),
}
"""Readers by what they read, which share the time of a campaign."""


def _tolerant(folder, act):
    def _act(value):
        with suppress(GkdError):
            act(folder, value)

    return _act


@pytest.mark.parametrize("reader", READ)
def test_a_reader_never_breaks(tmp_path, reader):
    strategy, act = READ[reader]
    fuzz(strategy, _tolerant(tmp_path, act), 20, deadline=2000)


@pytest.mark.exhaustive
@pytest.mark.parametrize("reader", READ)
def test_a_reader_never_breaks_for_long(tmp_path, reader):
    strategy, act = READ[reader]
    fuzz(strategy, _tolerant(tmp_path, act), 2_000, deadline=2000)


@pytest.mark.campaign
@pytest.mark.parametrize("target", TARGETS)
def test_readers_never_break_whatever_is_new(tmp_path, target):
    for reader in TARGETS[target]:
        strategy, act = READ[reader]
        print(reader, end=": ")
        fuzz_for(SECONDS / len(TARGETS[target]), strategy, _tolerant(tmp_path, act))


def test_every_reader_is_part_of_a_campaign():
    assert {reader for readers in TARGETS.values() for reader in readers} == set(READ)
