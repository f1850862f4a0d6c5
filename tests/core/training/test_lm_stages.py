"""Runs that learn the language first and then a task."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from gkd_core.config.resolve import resolve
from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Task
from gkd_core.errors import ConfigError
from gkd_core.models.embedded_teachers import MASK_SHARE
from gkd_core.models.tokenizer import load_tokenizer, tokenizer_mismatch
from gkd_core.plugins import registry
from gkd_core.runs import run as run_module
from gkd_core.runs.run import prepare_run
from gkd_core.training import loop
from gkd_core.training.assembly import build_stage

SAVED = "model.safetensors"
BODY = {"lm-teacher": "bert.", "lm-decoder": "model."}
HEAD = {"lm-teacher": "classifier.", "lm-decoder": "score."}

STAGES = """
[[stages]]
name = "pretrain"
method = "hard+soft"
task.kind = "lm"
[[stages]]
name = "task"
method = "hard"
"""


@pytest.fixture(scope="module")
def cache(embedded_rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    shutil.copytree(embedded_rows, folder / "embedded")
    return folder


@pytest.fixture
def prepare(prepare_run):
    """Prepare a run that distils a language model and then learns from labels."""

    def _prepare(*settings, teacher="lm-teacher", file=STAGES, **options):
        return prepare_run(*settings, file=file, teachers=(teacher,), **options)

    return _prepare


def _of(weights, prefix):
    return {name: value for name, value in weights.items() if name.startswith(prefix)}


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("teacher", "kind"), [("lm-teacher", "masked-lm"), ("lm-decoder", "causal-lm")]
)
def test_lm_is_what_the_model_was_made_for(prepare, teacher, kind):
    pretrain, task = prepare(teacher=teacher).specs
    assert (pretrain.kind.name, task.kind.name) == (kind, "classification")
    assert pretrain.data.train.labels is None


@pytest.mark.parametrize(("student", "kind"), [("teacher", "masked-lm"), ("decoder", "causal-lm")])
def test_lm_of_a_student_from_a_classifier_is_that_of_its_family(prepare_run, world, student, kind):
    settings = (f"student.model={world / student}", "method=hard", "task.kind=lm")
    assert prepare_run(*settings, teachers=()).last.kind.name == kind


def test_lm_of_a_later_stage_is_that_of_the_student_it_goes_on_with(prepare):
    file = STAGES + '[[stages]]\nname = "again"\nmethod = "hard"\ntask.kind = "lm"\n'
    assert prepare(teacher="lm-decoder", file=file).last.kind.name == "causal-lm"


def test_a_classifier_as_the_teacher_of_a_language_model_is_refused_with_the_setting(prepare):
    message = (
        "stages.pretrain.teacher.model = .* has no trained masked-LM head .*; name the language "
        r"model that it was made from \(--set stages.pretrain.teacher.model=DIR\)"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(teacher="teacher")


def test_missing_teacher_of_a_stage_names_its_setting(prepare_run):
    with pytest.raises(ConfigError, match=r"--set stages.pretrain.teacher.model=DIR for one stage"):
        prepare_run(file=STAGES, teachers=())


def test_labeled_rows_are_text_without_labels(prepare):
    pretrain, task = prepare().specs
    for name in ("train", "validation", "test"):
        plain, labeled = getattr(pretrain.data, name), getattr(task.data, name)
        assert list(plain.text) == list(labeled.text)
        assert plain.labels is None
        assert len(labeled.labels) == len(labeled.text)


@pytest.mark.parametrize("order", [1, -1], ids=["language first", "task first"])
def test_rows_that_the_task_holds_out_are_no_text_to_learn_from(world, order):
    stages = [
        {"name": "pretrain", "method": "hard", "task": {"kind": "lm"}},
        {"name": "task", "method": "hard", "student": str(world / "teacher")},
    ]
    resolved = resolve(
        registry(),
        flags={
            "task.train": (str(world / "train.jsonl"), "--data"),
            "student.model": (str(world / "lm-teacher"), "--student"),
            "stages": (stages[::order], "--set"),
            "task.max_length": (32, "--set"),
        },
    )
    found = {spec.name: spec.data for spec in prepare_run(resolved, registry())}
    assert list(found["pretrain"].validation.text) == list(found["task"].validation.text)
    assert not set(found["pretrain"].train.text) & set(found["task"].validation.text)


def test_both_texts_of_a_pair_are_plain_rows(prepare_run, tmp_path):
    rows = [{"premise": f"good {n}", "hypothesis": f"bad {n}", "label": n % 2} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"task.train={tmp_path / 'pairs.jsonl'}"
    same = [f"task.{name}={tmp_path / 'pairs.jsonl'}" for name in ("validation", "test")]
    run = prepare_run(data, *same, "method=hard", file=STAGES, teachers=("lm-teacher",))
    pretrain, task = run.specs
    assert len(task.data.train) == 20
    assert sorted(pretrain.data.train.text) == sorted(
        row[name] for row in rows for name in ("premise", "hypothesis")
    )


def test_a_stage_takes_a_corpus_and_a_teacher_of_its_own(prepare, world):
    corpus = f"stages.pretrain.task.train={world / 'corpus.txt'}"
    teacher = f"stages.pretrain.teacher.model={world / 'lm-teacher'}"
    pretrain, task = prepare(corpus, teacher, "stages.task.method=soft", teacher="teacher").specs
    assert pretrain.data.source == str(world / "corpus.txt")
    assert pretrain.config.task.validation is None
    assert pretrain.origin("task.train") == "--set"
    assert pretrain.teachers[0].model == str(world / "lm-teacher")
    assert task.teachers[0].model == str(world / "teacher")
    assert task.config.task.validation == str(world / "validation.jsonl")


def test_misspelt_stage_is_answered_with_the_nearest(prepare, world):
    with pytest.raises(ConfigError, match=r"no entry 'pretrian'.*Did you mean 'pretrain'"):
        prepare(f"stages.pretrian.task.train={world / 'corpus.txt'}")


@pytest.mark.parametrize(
    "teacher", ["lm-teacher", pytest.param("lm-decoder", marks=pytest.mark.exhaustive)]
)
def test_task_gets_a_fresh_head_on_the_body_that_learnt_the_language(prepare, teacher):
    run = prepare("baseline=true", teacher=teacher)
    run.execute()
    pretrained = run.directory / "stages" / "pretrain" / "student"
    stage = build_stage(run.last, run.registry, run.directory / "again", pretrained)
    kept, start = load_file(pretrained / SAVED), stage.student.model.state_dict()
    body = _of(kept, BODY[teacher])
    assert len(body) > 15
    assert _equal(body, {name: start[name] for name in body})
    said = "\n".join(stage.describe())
    assert "the best student of stage pretrain, with a fresh head" in said
    assert f"random weights  {'bert.pooler' if teacher == 'lm-teacher' else 'score.weight'}" in said
    assert not _of(kept, HEAD[teacher])
    assert _of(load_file(run.student / SAVED), HEAD[teacher])


def test_tokenizer_is_handed_on(prepare):
    run = prepare()
    run.execute()
    places = (run.directory / "stages" / "pretrain" / "student", run.student)
    one, other = (load_tokenizer(str(place), False, "test") for place in places)
    assert tokenizer_mismatch(one, other) is None


def test_later_stage_goes_on_whatever_the_student_of_the_first_was_made_like(prepare):
    run = prepare("stages.pretrain.student.init=random", "stages.pretrain.student.layers=3")
    assert run.last.follows is run.specs[0]
    assert run.last.student.layers == 3


def test_stage_that_reads_no_teacher_has_none(prepare):
    assert prepare().last.teachers == ()


def test_random_student_of_a_stage_without_distillation_takes_the_shape_alone(prepare):
    # The teacher is a classifier: as a language model it has no weights, but a shape.
    file = STAGES.replace("hard+soft", "hard")
    settings = ("student.init=random", "student.layers=half", "stages.task.method=soft")
    run = prepare(*settings, teacher="teacher", file=file)
    pretrain, task = run.specs
    assert (pretrain.start, pretrain.student.layers) == ("random weights", 2)
    assert len(task.teachers) == 1
    run.execute()
    assert AutoConfig.from_pretrained(run.student).num_hidden_layers == 2


def test_baseline_is_the_student_of_the_first_stage_before_its_training(prepare):
    run = prepare("baseline=true")
    baseline, pretrain, task = run.specs
    assert baseline.start == "the untrained student of stage pretrain, with a fresh head"
    assert (baseline.kind, baseline.config.training) == (task.kind, task.config.training)
    run.execute()
    start = load_file(run.directory / "stages" / "baseline" / "start" / SAVED)
    made = build_stage(pretrain, run.registry, run.directory / "again", None)
    weights = made.student.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in start.items())
    assert (run.directory / "baseline" / SAVED).exists()


def test_student_is_measured_against_the_last_teacher_of_its_task(prepare, world):
    teacher = f"stages.pretrain.teacher.model={world / 'lm-teacher'}"
    file = STAGES + '[[stages]]\nname = "labels"\nmethod = "hard"\n'
    run = prepare(teacher, "stages.task.method=soft", teacher="teacher", file=file)
    assert run.last.teachers == ()
    assert [source.model for source in run.teachers] == [str(world / "teacher")]
    assert run.methods == "hard+soft then soft then hard"
    assert prepare().teachers == ()


@pytest.mark.exhaustive
def test_default_teachers_are_of_the_family_that_was_handed_on(monkeypatch, cache):
    monkeypatch.setenv("GKD_CACHE", str(cache))
    stages = [
        {"name": "pretrain", "method": "soft", "task": {"kind": "causal-lm"}},
        {"name": "task", "method": "soft"},
    ]
    resolved = resolve(
        registry(),
        flags={"stages": (stages, "--set"), "baseline": (True, "--baseline")},
        task_defaults=lambda name, kind: registry().task(name).defaults(kind),
    )
    specs = prepare_run(resolved, registry())
    assert [(b.name, b.kind.name, b.student.family) for b in specs] == [
        ("teacher", "causal-lm", "llama"),
        ("teacher-2", "classification", "llama"),
        ("baseline", "classification", "llama"),
        ("pretrain", "causal-lm", "llama"),
        ("task", "classification", "llama"),
    ]
    teacher, second, _, pretrain, task = specs
    assert len(teacher.data.train) == len(second.data.train) > 5000
    assert len(pretrain.data.train) == 1000
    assert len(task.data.train) == 200
    assert pretrain.config.training.epochs == 12


def test_default_teacher_does_not_depend_on_what_a_run_masks(monkeypatch, cache):
    monkeypatch.setenv("GKD_CACHE", str(cache))
    settings = ["method=soft", "task.kind=lm", "task.mask_share=0.5", "baseline=false"]
    teacher, _ = prepare_run(resolve(registry(), settings=settings), registry())
    assert teacher.config.task.mask_share == MASK_SHARE


def test_a_task_never_sees_the_kind_lm():
    assert Task(TaskConfig(kind="causal-lm")).kind == "causal-lm"
    with pytest.raises(AssertionError):
        _ = Task(TaskConfig(kind="lm")).kind


# Resuming


class Killed(BaseException):
    """The process dies here."""


def _outcome(directory):
    students = sorted(directory.glob("**/model.safetensors"))
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timing = ("samples_per_second", "rollout/tokens_per_second", "milliseconds", "seconds")
    entries = [{k: v for k, v in entry.items() if k not in timing} for entry in entries]
    return entries, {str(path.relative_to(directory)): load_file(path) for path in students}


def _assert_equal(found, expected):
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(_equal(weights, expected[1][name]) for name, weights in found[1].items())


MOMENTS = {
    "in the baseline": (loop, "train_step", 3),
    "in pre-training": (loop, "train_step", 6 + 4),
    "after pre-training": (run_module, "remove_checkpoints", 2),
    "in the task": (loop, "train_step", 12 + 4),
}


@pytest.mark.parametrize(
    ("teacher", "moments"),
    [
        ("lm-decoder", ["after pre-training", "in the task"]),
        pytest.param(
            "lm-decoder", ["in the baseline", "in pre-training"], marks=pytest.mark.exhaustive
        ),
        pytest.param("lm-teacher", [*MOMENTS], marks=pytest.mark.exhaustive),
    ],
)
def test_resumed_run_ends_bit_equal(prepare, monkeypatch, teacher, moments):
    often = ("baseline=true", "training.checkpoint_every=2", "training.log_every=1")
    whole = prepare(*often, teacher=teacher, directory="whole")
    whole.execute()
    for number, moment in enumerate(moments):
        module, name, call = MOMENTS[moment]
        with monkeypatch.context() as dying:
            _kill(dying, module, name, call)
            with pytest.raises(Killed):
                prepare(*often, teacher=teacher, directory=str(number)).execute()
        run = prepare(*often, teacher=teacher, directory=str(number))
        run.execute()
        _assert_equal(_outcome(run.directory), _outcome(whole.directory))


def _kill(monkeypatch, module, name, call):
    stock = getattr(module, name)
    calls = []

    def dies(*arguments, **keywords):
        calls.append(name)
        result = stock(*arguments, **keywords)
        if len(calls) == call:
            raise Killed(name)
        return result

    monkeypatch.setattr(module, name, dies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "start", "first", "last"),
    [
        ("lm-teacher", ["stages.toml"], "pretrain", "task"),
        *(
            pytest.param(
                "teacher",
                ["--recipe", recipe],
                "assistant-1",
                "student",
                marks=pytest.mark.exhaustive,
            )
            for recipe in ("takd", "dgkd")
        ),
    ],
)
@pytest.mark.exhaustive
def test_run_killed_by_signal_in_each_stage_ends_bit_equal(
    invoke, kill, settings, world, tmp_path, teacher, start, first, last
):
    """The whole command, with a real SIGKILL in its first stage and another one in the last."""
    (tmp_path / "stages.toml").write_text(STAGES)
    every = ("training.checkpoint_every=4", "training.log_every=1", "training.epochs=1")
    own = [world / teacher if each == world / "teacher" else each for each in settings]
    arguments = ["run", *start, *own]
    arguments += [text for setting in every for text in ("--set", setting)]
    killed = tmp_path / "killed"
    kill(first, 5, *arguments, "--output", killed)
    assert not (killed / "stages" / first / "student").exists()
    kill(last, 5, *arguments, "--output", killed, "--resume")
    assert not (killed / "student").exists()
    for options in (("--output", killed, "--resume"), ("--output", tmp_path / "whole")):
        done = invoke(*arguments, *options)
        assert done.code == 0, done.err
    _assert_equal(_outcome(killed), _outcome(tmp_path / "whole"))
