"""What a run file and the command line say of several teachers."""

import json

import pytest
import torch
from tests.grids import first_of

from gkd_core.config.resolve import resolve
from gkd_core.errors import MethodError
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.training.assembly import build_stage


@pytest.fixture
def stage(world, pair, tmp_path):
    """Build the stage of a run with both teachers: `stage("method=soft", ...)`."""

    def _stage(*settings):
        named = [{"name": name, "model": str(pair / name)} for name in ("large", "small")]
        data = [f"task.train={world / 'train.jsonl'}", "task.max_length=32", "student.layers=2"]
        flags = {"teachers": (named, "--teacher")}
        resolved = resolve(registry(), settings=[*data, *settings], flags=flags)
        (spec,) = prepare_run(resolved, registry())
        return build_stage(spec, registry(), tmp_path / "stage", None)

    return _stage


def test_each_teacher_has_its_own_dtype(stage):
    built = stage("method=soft", "teachers.small.dtype=bf16")
    large, small = (teacher.model for teacher in built.teachers)
    assert {weight.dtype for weight in large.parameters()} == {torch.float32}
    assert {weight.dtype for weight in small.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in built.student.model.parameters()} == {torch.float32}


def test_a_student_is_made_from_the_exact_weights_of_a_bf16_teacher(stage):
    exact, rounded = (
        stage("method=soft", "student.init=first", f"teachers.large.dtype={dtype}").student.model
        for dtype in ("fp32", "bf16")
    )
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        if one.dim() > 1 and one.shape[0] > 2:  # not the head, which may be drawn
            assert torch.equal(one, other)


@pytest.mark.parametrize("method", first_of(["tinybert", "soft", "minilmv2"]))
def test_what_is_read_of_a_bf16_teacher_is_fp32_and_close(invoke, pair, settings, tmp_path, method):
    losses = []
    for dtype in ("fp32", "bf16"):
        given = ["--teacher", pair / "large", *settings[2:], "--no-baseline", "--method", method]
        given += ["--set", f"teacher.dtype={dtype}", "--set", "training.steps=1"]
        done = invoke("run", *given, "--set", "training.log_every=1", "--output", tmp_path / dtype)
        assert done.code == 0, done.err
        (line, *_) = (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(line)["loss/total"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_path_names_one_of_the_teachers(stage, monkeypatch):
    soft = registry().method("soft")
    monkeypatch.setattr(
        soft, "reads", lambda *_: ["student.logits", "teacher.logits", "teachers[large].hidden[1]"]
    )
    built = stage("method=soft")
    plan = built.objective.plan(_first())
    (main,) = plan.passes
    read = [{str(capture) for capture in main.captures("teacher", number)} for number in (0, 1)]
    assert read == [{"hidden[1]", "logits"}, {"logits"}]


@pytest.mark.parametrize("method", ["soft", "mt-bert(soft)"])
def test_a_path_of_a_teacher_that_is_not_there_is_refused_before_weights_load(
    stage, monkeypatch, method
):
    paths = ["student.logits", "teacher.logits", "teachers[smal].hidden[1]"]
    monkeypatch.setattr(registry().method("soft"), "reads", lambda *_: paths)
    monkeypatch.setattr("gkd_core.training.stage_models.load_teacher", None)
    with pytest.raises(MethodError, match="no teacher is called 'smal'"):
        stage(f"method={method}")


def _first():
    from gkd_core.api import Step

    return Step(0, 1, 0, "distil", torch.default_generator)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["A"], ["teacher"]),
        (["A", "B"], ["teacher1", "teacher2"]),
        (["large=A", "small=B"], ["large", "small"]),
        (["large=A", "B"], ["large", "teacher2"]),
    ],
)
def test_teachers_are_named_on_the_command_line(flags, names):
    from gkd_core.cli.options import RunOptions

    config = RunOptions([], None, [], {"teacher": tuple(flags), "method": "soft"}).resolve().config
    assert [teacher.name for teacher in config.teachers] == names
    assert [teacher.model for teacher in config.teachers] == ["A", "B"][: len(flags)]
