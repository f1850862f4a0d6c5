"""A stage thought through before any weight is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from gkd_core.errors import ConfigError, DataError, MethodError
from gkd_core.training import stage_models
from gkd_core.training.assembly import build_stage


@pytest.fixture
def changed_teacher(world, tmp_path):
    """Copy the world's teacher with other settings in its config.json."""

    def _changed(**settings):
        folder = shutil.copytree(world / "teacher", tmp_path / "changed")
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return _changed


def test_student_has_the_shape_that_is_built(prepare_run, tmp_path):
    run = prepare_run("student.layers=3", "student.hidden_size=16", "method=soft")
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    assert (run.last.student.layers, run.last.student.hidden_size) == (3, 16)
    assert stage.student.model.config.hidden_size == 16
    assert run.last.student_config.num_hidden_layers == 3


def test_classes_take_the_order_of_the_teacher(prepare_run, changed_teacher):
    other = changed_teacher(id2label={"0": "pos", "1": "neg"}, label2id={"pos": 0, "neg": 1})
    one, two = prepare_run().last.data, prepare_run(teachers=(other,)).last.data
    assert one.classes == ("neg", "pos")
    assert two.classes == ("pos", "neg")
    assert [1 - label for label in one.train.labels] == list(two.train.labels)


def test_classes_take_the_order_of_a_student_without_a_teacher(
    prepare_run, changed_teacher, tmp_path
):
    own = changed_teacher(id2label={"0": "pos", "1": "neg"}, label2id={"pos": 0, "neg": 1})
    run = prepare_run("method=hard", f"student.model={own}")
    assert run.last.data.classes == ("pos", "neg")
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    assert stage.student.model.config.id2label == {0: "pos", 1: "neg"}


def test_labels_alone_need_no_teacher(prepare_run, world):
    run = prepare_run("method=hard", f"student.model={world / 'teacher'}", teachers=("nowhere",))
    assert run.last.teachers == ()


def test_teacher_that_nobody_reads_makes_the_student_and_leaves(prepare_run, tmp_path, monkeypatch):
    run = prepare_run("method=hard")
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    assert stage.teachers == []
    assert any("teacher blocks" in line for line in stage.describe())
    run.execute()
    loaded = []
    stock = stage_models.load_teacher
    monkeypatch.setattr(stage_models, "load_teacher", lambda *a: loaded.append(a) or stock(*a))
    build_stage(run.last, run.registry, tmp_path / "stage", run.student)
    assert loaded == []


def test_default_method_takes_a_student_of_any_width_and_depth(prepare_run):
    spec = prepare_run("student.hidden_size=16", "student.layers=1").last
    assert str(spec.expression) == "soft+hard"


def test_data_of_several_stages_is_read_once(prepare_run):
    first, second = prepare_run(
        file='[[stages]]\nname = "a"\n[[stages]]\nname = "b"\nseed = 7\n'
    ).specs
    assert first.data is second.data


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (("method=pkd", "student.layers=1"), MethodError, "pkd has no layer to match"),
        (("student.layers=9",), ConfigError, "9"),
        (("method=pkd", "student.hidden_size=16"), MethodError, "hidden size 16"),
        (
            ("task.max_length=33",),
            ConfigError,
            r"task.max_length is 33 \(--set\), but the teacher 'teacher' reads at most 32",
        ),
        (("parallel.device=cuda",), ConfigError, "finds no CUDA device"),
        (("task.kind=causal-lm",), ConfigError, "bert is an encoder"),
        (("task.label=lable",), DataError, "lable"),
        (("method=pkd", "pkd.layers=[[1, 9]]"), MethodError, "9"),
    ],
)
def test_what_cannot_work_is_refused_before_any_weight_is_loaded(
    prepare_run, monkeypatch, settings, error, message
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    with pytest.raises(error, match=message):
        prepare_run(*settings)


def test_unlabeled_rows_are_refused_by_methods_that_need_labels(prepare_run, world, tmp_path):
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    (tmp_path / "plain.jsonl").write_text(
        "".join(json.dumps({"text": r["text"]}) + "\n" for r in rows)
    )
    with pytest.raises((ConfigError, DataError), match="label"):
        prepare_run("method=hard", f"task.train={tmp_path / 'plain.jsonl'}")


def test_teacher_named_student_is_refused(prepare_run, world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "student")
    with pytest.raises(ConfigError, match="a teacher cannot be named 'student'"):
        prepare_run(teachers=(tmp_path / "student",))


def test_teacher_without_a_task_that_brings_one_is_asked_for(prepare_run):
    with pytest.raises(
        ConfigError, match="no teacher is given, and the task 'files' has no default teacher"
    ):
        prepare_run(teachers=())
