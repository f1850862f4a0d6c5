"""Stages that take the students of others: to go on with, or to learn from."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.analysis.explanation import explain
from gkd_core.analysis.run_summary import summarize_run
from gkd_core.config.render import to_toml
from gkd_core.config.resolve import resolve
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry
from gkd_core.runs.outline import RunOutline, outline_stage
from gkd_core.training import loop, stage_models
from gkd_core.training.assembly import build_stage

SAVED = "model.safetensors"

CHAIN = """
[[stages]]
name = "assistant"
method = "soft"
student.layers = 3
[[stages]]
name = "small"
method = "soft"
teacher = "stage:assistant"
"""

DIAMOND = """
[[stages]]
name = "left"
method = "soft"
[[stages]]
name = "right"
method = "soft"
seed = 2
student.new_student = true
[[stages]]
name = "both"
method = "soft"
student.new_student = true
teachers = [{name = "left", model = "stage:left"}, {name = "right", model = "stage:right"}]
"""


def _weights(run, stage):
    folder = run.student if stage == run.last.name else run.directory / "stages" / stage / "student"
    return load_file(folder / SAVED)


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_learns_from_the_student_of_another(prepare_run, monkeypatch):
    loaded = {}
    stock = stage_models.load_teacher

    def load_teacher(model, *rest):
        loaded[model] = stock(model, *rest)
        return loaded[model]

    monkeypatch.setattr(stage_models, "load_teacher", load_teacher)
    run = prepare_run(file=CHAIN)
    assistant, small = run.specs
    assert (assistant.student.layers, small.student.layers) == (3, 2)
    assert small.follows is None
    assert small.start == "blocks 1, 3 of assistant"
    run.execute()
    taught_by = loaded[str(run.directory / "stages" / "assistant" / "student")].state_dict()
    assert _equal({n: taught_by[n] for n in _weights(run, "assistant")}, _weights(run, "assistant"))
    assert len(_weights(run, "small")) < len(_weights(run, "assistant"))


@pytest.mark.usefixtures("brief")
def test_the_comparison_names_every_model_on_the_way(prepare_run):
    run = prepare_run("baseline=true", file=CHAIN)
    assert [spec.name for spec in run.specs] == ["assistant", "baseline", "small"]
    run.execute()
    (run.directory / "config.toml").write_text(to_toml(run.resolved))
    names = [row.name for row in summarize_run(run).comparison.rows]
    assert names == ["teacher", "assistant", "student, labels only", "student, soft then soft"]


def test_a_stage_learns_from_several_students(prepare_run):
    run = prepare_run(file=DIAMOND)
    left, right, both = run.specs
    assert (left.follows, right.follows, both.follows) == (None, None, None)
    assert [teacher.stage.name for teacher in both.teachers] == ["left", "right"]
    run.execute()
    assert not _equal(_weights(run, "left"), _weights(run, "right"))


def test_a_stage_goes_on_with_the_student_of_any_earlier_one(prepare_run):
    file = DIAMOND + '[[stages]]\nname = "more"\nmethod = "hard"\nstudent = "stage:left"\n'
    run = prepare_run(file=file)
    assert run.last.follows is run.specs[0]
    assert run.last.start == "the best student of stage left"
    run.execute()
    built = build_stage(
        run.last, run.registry, run.directory / "again", run.directory / "stages/left/student"
    )
    start = built.student.model.state_dict()
    assert _equal({n: start[n] for n in _weights(run, "left")}, _weights(run, "left"))


def test_new_student_false_goes_on_whatever_the_stage_says_of_its_student(prepare_run):
    file = (
        '[[stages]]\nname = "a"\n[[stages]]\nname = "b"\n'
        "student = {new_student = false, layers = 3}\n"
    )
    first, second = prepare_run(file=file).specs
    assert second.follows is first
    assert second.student.layers == 2


def _chain(*stages):
    return "".join(
        f'[[stages]]\nname = "{name}"\nmethod = "soft"\n{rest}\n' for name, rest in stages
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [("assistant", ""), ("small", 'teacher = "stage:asistant"')],
            r"stages.small.teacher.model = 'stage:asistant': there is no stage 'asistant'. "
            "Did you mean 'assistant'",
        ),
        (
            [("a", 'teacher = "stage:a"')],
            r"stages.a.teacher.model = 'stage:a': a stage cannot depend on itself \(a -> a,",
        ),
        (
            [
                ("a", 'teacher = "stage:c"'),
                ("b", 'teacher = "stage:a"'),
                ("c", 'student = "stage:b"'),
            ],
            r"cannot depend on itself \(a -> c -> b -> a, each of which uses the student of the",
        ),
        (
            [("a", 'teacher = "stage:b"'), ("b", "student.layers = 3")],
            "that stage comes later. Stages run in the order written; move 'b' before",
        ),
        (
            [("a", ""), ("b", 'student = {model = "stage:a", new_student = true}')],
            "continues with the student of another stage, so `new_student` cannot be set as well",
        ),
        (
            [("a", ""), ("b", 'student = {model = "stage:a", layers = 2}')],
            "starts the student from its own checkpoint, so layers cannot be set as well",
        ),
    ],
)
def test_a_graph_that_cannot_be_is_refused_with_the_names(prepare_run, stages, message):
    with pytest.raises(ConfigError, match=message):
        prepare_run(file=_chain(*stages))


def test_a_run_without_stages_has_no_stage_to_learn_from(prepare_run):
    with pytest.raises(ConfigError, match=r"teacher.model = 'stage:a': there is no stage 'a'"):
        prepare_run("teacher.model=stage:a", teachers=())


def test_a_student_that_nobody_uses_is_told(prepare_run):
    run = prepare_run(file=_chain(("a", ""), ("b", "student.layers = 3")))
    assert [w for w in run.resolved.warnings if "stage" in w] == [
        "no stage uses the student of stage 'a': none continues with it, and none has teacher = "
        "'stage:a'"
    ]
    assert not prepare_run(file=CHAIN).resolved.warnings


def test_a_language_model_cannot_teach_classes(prepare_run, world):
    file = _chain(
        ("language", f'task.kind = "lm"\nteacher = "{world / "lm-teacher"}"'),
        ("labels", 'teacher = "stage:language"'),
    )
    message = (
        r"stages.labels.teacher.model = 'stage:language': the student of stage 'language' is "
        "trained for masked-lm, but stage 'labels' is classification"
    )
    with pytest.raises(ConfigError, match=message):
        prepare_run(file=file, teachers=())


def test_what_a_later_stage_cannot_do_is_found_before_the_first_runs(prepare_run):
    file = CHAIN + "student.layers = 4\n"
    with pytest.raises(ConfigError, match="4"):
        prepare_run(file=file)


def test_progress_shows_the_whole_plan(prepare_run, monkeypatch):
    run, lines = prepare_run("baseline=true", file=CHAIN), []
    monkeypatch.setattr(run.recorder, "say", lines.append)
    run.execute()
    assert lines[:3] == [
        "stage 1  assistant  soft; taught by teacher",
        "stage 2  baseline   hard",
        "stage 3  small      soft; taught by assistant",
    ]
    begun = [line for line in lines if " of 3" in line]
    assert begun == [
        "stage assistant (1 of 3)",
        "stage baseline (2 of 3)",
        "stage small (3 of 3)",
    ]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("untimed")
def test_explain_and_the_report_show_who_teaches_whom(prepare_run):
    run = prepare_run(file=DIAMOND)
    outline = explain(RunOutline(tuple(outline_stage(spec) for spec in run.specs)))
    assert outline.startswith(
        "stages\n"
        "  1  left   soft; taught by teacher\n"
        "  2  right  soft; taught by teacher\n"
        "  3  both   soft; taught by left, right\n"
    )
    run.execute()
    (run.directory / "config.toml").write_text(to_toml(run.resolved))
    page = re.sub(r"<td[^>]*>", "<td>", summarize_run(run).report.read_text())
    assert "<td>both</td><td>soft</td><td>left, right</td>" in page
    # Quality, validation, the similarity of layers, and the losses of each stage.
    assert page.count("</svg>") == 6


class Killed(BaseException):
    """The process dies here."""


def _outcome(run):
    lines = [json.loads(x) for x in (run.directory / "metrics.jsonl").read_text().splitlines()]
    entries = [{k: v for k, v in x.items() if k != "samples_per_second"} for x in lines]
    weights = {str(p.relative_to(run.directory)): load_file(p) for p in run.directory.rglob(SAVED)}
    return entries, weights


@pytest.mark.parametrize(
    "steps", [(6 + 4,), pytest.param((3, 12 + 5), marks=pytest.mark.exhaustive)]
)
def test_a_graph_that_was_stopped_in_any_stage_ends_bit_equal(prepare_run, monkeypatch, steps):
    often = ("training.checkpoint_every=2", "training.log_every=1")
    whole = prepare_run(*often, file=DIAMOND, directory="whole")
    whole.execute()
    stock = loop.train_step
    for step in steps:
        done = []

        def dies(*arguments, step=step, done=done):
            done.append(stock(*arguments))
            if len(done) == step:
                raise Killed
            return done[-1]

        with monkeypatch.context() as dying:
            dying.setattr(loop, "train_step", dies)
            with pytest.raises(Killed):
                prepare_run(*often, file=DIAMOND, directory=str(step)).execute()
        run = prepare_run(*often, file=DIAMOND, directory=str(step))
        run.execute()
        found, expected = _outcome(run), _outcome(whole)
        assert found[0] == expected[0]
        assert found[1].keys() == expected[1].keys()
        assert all(_equal(weights, expected[1][name]) for name, weights in found[1].items())


def test_the_written_configuration_is_the_same_graph(prepare_run, tmp_path):
    resolved = prepare_run(file=DIAMOND).resolved
    (tmp_path / "config.toml").write_text(to_toml(resolved))
    again = resolve(registry(), files=[tmp_path / "config.toml"])
    assert again.links == resolved.links
    assert not resolved.differences(again)
