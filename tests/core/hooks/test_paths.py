import subprocess
import sys

import pytest

from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.errors import MethodError
from gkd_core.hooks.paths import Capture, check_teachers, parse_path, resolve_paths


def info(name, layers, **changes):
    shape = {
        "family": "bert",
        "hidden_size": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "ffn_size": 64,
        "vocab_size": 100,
        "labels": 3,
        "max_length": 64,
    }
    return ModelInfo(name=name, layers=layers, **(shape | changes))


STUDENT = info("student", 3)
MODELS = Models(STUDENT, info("bert-6", 6))


def student(*paths):
    return resolve_paths(paths, MODELS, "pkd").student.get("main", frozenset())


def teacher(*paths):
    return resolve_paths(paths, MODELS, "pkd").teacher.get("main", frozenset())


@pytest.mark.parametrize(
    ("path", "layers"),
    [
        ("student.hidden[0]", {0}),
        ("student.hidden[last]", {3}),
        ("student.hidden[-1]", {3}),
        ("student.hidden[-4]", {0}),
        ("student.hidden[*]", {0, 1, 2, 3}),
        ("student.hidden[0, 2,last]", {0, 2, 3}),
        ("student.probs[*]", {1, 2, 3}),
        ("student.query[-3]", {1}),
        ("student.context[last]", {3}),
    ],
)
def test_index_stands_for_layers(path, layers):
    captures = student(path)
    assert {capture.layer for capture in captures} == layers
    assert {capture.site for capture in captures} == {path.split(".")[1].split("[")[0]}


def test_last_follows_the_depth_of_each_model():
    reads = resolve_paths(["student.key[last]", "teacher.key[last]"], MODELS, "minilm")
    assert reads.student == {"main": {Capture("key", 3)}}
    assert reads.teacher == {"main": {Capture("key", 6)}}


def test_different_spellings_are_one_capture():
    assert student("student.embedding", "student.hidden[0]", "student.hidden[-4]") == {
        Capture("hidden", 0)
    }
    assert student("student.hidden[-1]|cls", "student.hidden[last]|cls") == {
        Capture("hidden", 3, reduce="cls")
    }


def test_reducer_and_norm_make_captures_of_their_own():
    captures = student("student.hidden[last]", "student.hidden[last].normed|mean", "student.logits")
    assert captures == {
        Capture("hidden", 3),
        Capture("hidden", 3, normed=True, reduce="mean"),
        Capture("logits"),
    }


@pytest.mark.parametrize(
    "path",
    ["hidden[2]", "hidden[3].normed|cls", "hidden[0]|mean", "logits", "probs[1]", "context[2]|cls"],
)
def test_capture_prints_its_path(path):
    (capture,) = student(f"student.{path}")
    assert str(capture) == path


def test_captures_can_be_sorted():
    captures = student("student.logits", "student.hidden[*]", "student.hidden[2]|cls")
    assert [str(capture) for capture in sorted(captures)] == [
        "hidden[0]",
        "hidden[1]",
        "hidden[2]",
        "hidden[2]|cls",
        "hidden[3]",
        "logits",
    ]


def test_named_teacher_is_read_only_where_it_is():
    assert teacher("teachers[bert-6].logits") == {Capture("logits")}
    assert teacher("teachers[large].logits") == frozenset()
    assert parse_path("teachers[large].logits", "tmkd").teacher == "large"


def test_a_teacher_that_is_not_there_is_refused_by_name():
    paths = ["student.logits", "teacher.logits", "teachers[large].logits"]
    check_teachers(paths, ["large", "small"], "pkd")
    with pytest.raises(MethodError) as error:
        check_teachers([*paths, "teachers[lrage].hidden[last]"], ["large", "small"], "pkd")
    assert str(error.value) == (
        "pkd names teachers[lrage].hidden[last], but no teacher is called 'lrage'. Did you mean "
        "'large'? The teachers are large, small"
    )


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("student.hidden[1]", (2, 5, 32)),
        ("student.hidden[1]|cls", (2, 32)),
        ("student.query[1]", (2, 4, 5, 16)),
        ("student.value[1]", (2, 2, 5, 16)),
        ("student.scores[1]", (2, 4, 5, 5)),
        ("student.context[1]", (2, 5, 64)),
        ("student.context[1]|mean", (2, 64)),
        ("student.logits", (2, 3)),
    ],
)
def test_capture_knows_its_shape(path, shape):
    (capture,) = student(path)
    assert capture.shape(STUDENT, 2, 5) == shape


def test_logits_over_the_vocabulary_have_positions():
    language_model = info("student", 3, labels=100, predicted="token")
    assert Capture("logits").shape(language_model, 2, 5) == (2, 5, 100)
    assert Capture("logits").bytes(language_model, 2, 5) == 2 * 5 * 100 * 4
    assert Capture("logits").bytes(language_model, 2, 5, element_size=2) == 2 * 5 * 100 * 2


@pytest.mark.parametrize(
    ("path", "position", "words"),
    [
        ("student.hiden[2]", 8, ["'hiden' is not a site", "Did you mean 'hidden'?"]),
        ("studnt.hidden[2]", 0, ["Did you mean 'student'?"]),
        ("hidden", 0, ["must start with `student.`"]),
        ("student.hidden", 8, ["needs a layer"]),
        ("student.logits[1]", 15, ["has no layers"]),
        ("student.hidden[first]", 15, ["'first' is not a layer"]),
        ("student.hidden[]", 15, ["is not a layer"]),
        ("student.hidden[1,]", 15, ["is not a layer"]),
        ("student.probs[1].normed", 16, ["only for hidden[last]"]),
        ("student.hidden[1]|max", 18, ["not a reducer"]),
        ("student.probs[1]|mean", 17, ["no positions"]),
        ("student.hidden[1]!", 17, ["'!' does not belong"]),
        ("student.hidden[1].norm", 17, ["'.norm' does not belong"]),
        ("student.hidden[1].normedx", 17, ["does not belong"]),
        ("teachers.logits", 0, ["teachers[name]"]),
        ("teacher[a].logits", 0, ["teachers[name]"]),
        ("student[a].logits", 0, ["teachers[name]"]),
    ],
)
def test_malformed_path_is_shown_with_a_caret(path, position, words):
    with pytest.raises(MethodError) as error:
        student(path)
    lines = str(error.value).splitlines()
    assert lines[1:3] == [f"    {path}", f"    {' ' * position}^"]
    assert "hidden[l]" in lines[3]
    assert lines[0].startswith(f"pkd names {path!r}")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("layer", ["11", "-8", "7"])
def test_layer_beyond_the_teacher_is_refused(layer):
    with pytest.raises(MethodError, match="'bert-6' has 6 layers") as error:
        teacher(f"teacher.hidden[{layer}]")
    assert f"pkd names teacher.hidden[{layer}]" in str(error.value)
    assert "hidden[0] to hidden[6]" in str(error.value)


def test_attention_starts_at_layer_one():
    with pytest.raises(MethodError, match=r"probs\[1\] to probs\[3\]"):
        student("student.probs[0]")


def test_norm_of_an_inner_layer_is_refused():
    with pytest.raises(MethodError, match=r"student\.hidden\[last\]\.normed"):
        student("student.hidden[1].normed")


def test_teacher_path_without_a_teacher_is_refused():
    with pytest.raises(MethodError, match="the run has no teacher"):
        resolve_paths(["teacher.logits"], Models(STUDENT, None), "pkd")


def test_paths_import_no_torch():
    code = "import sys, gkd_core.hooks.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
