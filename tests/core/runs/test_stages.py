"""Runs of several stages: what is handed on, what is trained first, which names are taken."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.api import hookimpl
from gkd_core.contract.task import DefaultTeacher
from gkd_core.data.files import Files
from gkd_core.errors import ConfigError
from gkd_core.training.assembly import build_stage
from gkd_core.training.checkpoint import load_checkpoint

SAVED = "model.safetensors"


@pytest.fixture
def pretrain_then_classify(world):
    """A run file: masked-lm on the corpus, then classification."""
    return f"""
[[stages]]
name = "pretrain"
method = "pkd+soft"
teachers = [{{model = "{world / "lm-teacher"}"}}]
task.kind = "masked-lm"
task.train = "{world / "corpus.txt"}"
task.validation = "{world / "corpus.txt"}"
task.test = "{world / "corpus.txt"}"

[[stages]]
name = "classify"
method = "pkd+soft+hard"
teachers = [{{model = "{world / "teacher"}"}}]
"""


def test_second_stage_goes_on_with_the_body_of_the_first(prepare_run, pretrain_then_classify):
    run = prepare_run(file=pretrain_then_classify, teachers=())
    run.execute()
    first = run.directory / "stages" / "pretrain" / "student"
    stage = build_stage(run.last, run.registry, run.directory / "again", first)
    kept = load_file(first / SAVED)
    start = stage.student.model.state_dict()
    body = [name for name in kept if name.startswith("bert.")]
    assert len(body) > 20
    assert all(torch.equal(kept[name], start[name]) for name in body)
    final = load_file(run.student / SAVED)
    assert any(not torch.equal(final[name], kept[name]) for name in body)
    assert "classifier.weight" in final
    assert "classifier.weight" not in kept
    assert "cls.predictions.bias" in kept


def test_stages_are_judged_by_the_metric_of_their_task(prepare_run, pretrain_then_classify):
    run = prepare_run(file=pretrain_then_classify, teachers=())
    run.execute()
    assert {name: result.metric for name, result in run.results.items()} == {
        "pretrain": "perplexity",
        "classify": "accuracy",
    }
    AutoModelForMaskedLM.from_pretrained(run.directory / "stages" / "pretrain" / "student")
    AutoModelForSequenceClassification.from_pretrained(run.student)


def test_fresh_head_of_a_later_stage_depends_on_the_seed_alone(prepare_run, pretrain_then_classify):
    run = prepare_run(file=pretrain_then_classify, teachers=())
    run.execute()
    first = run.directory / "stages" / "pretrain" / "student"
    heads = []
    for noise in range(2):
        torch.manual_seed(noise)
        stage = build_stage(run.last, run.registry, run.directory / "again", first)
        heads.append(stage.student.model.state_dict()["classifier.weight"])
    assert torch.equal(*heads)


def test_stage_with_a_student_of_its_own_starts_afresh(prepare_run):
    file = """
[[stages]]
name = "first"
[[stages]]
name = "second"
student.layers = 3
"""
    run = prepare_run(file=file)
    first, second = run.specs
    assert second.follows is None
    assert (first.student.layers, second.student.layers) == (2, 3)


def test_methods_are_told_the_shape_of_the_student_that_is_handed_on(prepare_run, world, tmp_path):
    # The teacher of the second stage is deeper, and the student would be too, were it made anew.
    wide = AutoModelForSequenceClassification.from_pretrained(world / "teacher").config
    wide.num_hidden_layers = 6
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(wide).save_pretrained(tmp_path / "deep")
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(tmp_path / "deep")
    file = f"""
student = {{layers = 2, ffn_size = 32}}
[[stages]]
name = "first"
[[stages]]
name = "second"
teachers = [{{model = "{tmp_path / "deep"}"}}]
"""
    run = prepare_run(
        file=file.replace(
            'name = "first"', f'name = "first"\nteachers = [{{model = "{world / "teacher"}"}}]'
        ),
        teachers=(),
    )
    first, second = run.specs
    assert second.follows is first
    assert second.teachers[0].info.layers == 6
    assert (second.student.layers, second.student.ffn_size) == (2, 32)


def test_student_handed_to_a_teacher_with_another_tokenizer_is_refused(
    prepare_run, world, tmp_path
):
    AutoModelForSequenceClassification.from_pretrained(world / "teacher").save_pretrained(
        tmp_path / "other"
    )
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(tmp_path / "other")
    file = f"""
[[stages]]
name = "first"
teachers = [{{model = "{world / "teacher"}"}}]
[[stages]]
name = "second"
teachers = [{{model = "{tmp_path / "other"}"}}]
"""
    with pytest.raises(ConfigError, match="the student of stage 'first' have different tokenizers"):
        prepare_run("method=minilm", file=file, teachers=())


@pytest.mark.parametrize("name", ["teacher", "baseline"])
def test_names_of_the_stages_that_gkd_adds_are_refused(prepare_run, name):
    with pytest.raises(ConfigError, match=f"a stage cannot be named '{name}'.*Choose another name"):
        prepare_run(file=f'[[stages]]\nname = "{name}"\n')


@pytest.mark.exhaustive
def test_baseline_is_the_first_student_trained_as_the_last_stage_is(prepare_run):
    file = """
[[stages]]
name = "first"
method = "soft"
[[stages]]
name = "second"
training.epochs = 2
"""
    run = prepare_run("baseline=true", file=file)
    baseline, first, second = run.specs
    assert baseline.config.method == "hard"
    assert baseline.config.student == first.config.student
    assert baseline.config.training == second.config.training
    assert baseline.follows is None
    assert second.follows is first
    run.execute()
    assert (run.directory / "baseline" / SAVED).exists()
    assert [r.steps for r in run.results.values()] == [12, 6, 12]


def test_finished_stages_are_skipped_and_told(prepare_run, pretrain_then_classify, monkeypatch):
    prepare_run(file=pretrain_then_classify, teachers=()).execute()

    lines = []
    run = prepare_run(file=pretrain_then_classify, teachers=())
    monkeypatch.setattr(run.recorder, "say", lines.append)
    run.execute()
    assert lines == [
        "stage 1  pretrain  pkd+soft; taught by teacher; finished",
        "stage 2  classify  pkd+soft+hard; taught by teacher; goes on with pretrain; finished",
        "stage pretrain is finished already",
        "stage classify is finished already",
    ]


def test_stage_without_a_checkpoint_starts_at_its_beginning(prepare_run, tmp_path):
    run = prepare_run("method=soft")
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    assert load_checkpoint(stage, print).step == 0


class WithTeacher(Files):
    """Rows from files, and a teacher that is trained on them."""

    name = "with-teacher"

    def default_teacher(self, data, size):
        source = self.config.train.replace("train.jsonl", "lm-teacher")

        def build(directory):
            model = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=2, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}
            )
            model.save_pretrained(directory)
            AutoTokenizer.from_pretrained(source).save_pretrained(directory)

        return DefaultTeacher(build, {"steps": 3, "batch_size": 8, "lr": 1e-3})


class TaskPlugin:
    """Provides the task."""

    @hookimpl
    def gkd_register_tasks(self):
        """Return it."""
        return [WithTeacher]


@pytest.fixture
def default_teacher_run(prepare_run, registry_with, tmp_path, monkeypatch):
    """Prepare a run whose task trains its teacher."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def _prepare(*settings, **options):
        return prepare_run(
            "method=soft",
            "task.name=with-teacher",
            *settings,
            teachers=(),
            registry=registry_with(TaskPlugin()),
            **options,
        )

    return _prepare


def _taught(run):
    return load_file(run.last.teachers[0].store.trained / SAVED)


def test_default_teacher_is_trained_first_and_only_once(default_teacher_run):
    run = default_teacher_run(directory="first")
    assert [spec.name for spec in run.specs] == ["teacher", "distil"]
    run.execute()
    assert run.results["teacher"].steps == 3
    again = default_teacher_run(directory="second")
    assert [spec.name for spec in again.specs] == ["distil"]
    again.execute()
    students = [load_file(each.student / SAVED) for each in (run, again)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())


@pytest.mark.exhaustive
def test_default_teacher_is_the_same_whatever_the_run_asks_for(
    default_teacher_run, tmp_path, monkeypatch
):
    found = []
    for number, settings in enumerate(
        [(), ("seed=5", "training.precision=bf16", "method=hard+soft")]
    ):
        monkeypatch.setenv("GKD_CACHE", str(tmp_path / f"cache{number}"))
        run = default_teacher_run(*settings, directory=str(number))
        run.execute()
        found.append(_taught(run))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_default_teacher_of_other_lengths_is_another(default_teacher_run):
    short, long = (default_teacher_run(f"task.max_length={n}", directory=str(n)) for n in (8, 32))
    assert short.last.teachers[0].store.trained != long.last.teachers[0].store.trained


def test_default_teacher_is_shared_by_all_stages(default_teacher_run):
    file = '[[stages]]\nname = "first"\n[[stages]]\nname = "second"\n'
    run = default_teacher_run("baseline=true", file=file)
    names = [spec.name for spec in run.specs]
    assert names == ["teacher", "baseline", "first", "second"]
    run.execute()
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert list(dict.fromkeys(json.loads(line)["stage"] for line in lines)) == names
