"""TAKD: a chain of ever smaller models, each taught by the one before."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from gkd_core.api import ConfigError, ModelInfo, Models
from gkd_core.config.resolve import resolve
from gkd_core.models.save import count_parameters
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.runs.spec_builder import read_shapes
from gkd_methods_multiteacher.assistants import shrink

SAVED = "model.safetensors"


@pytest.fixture
def draw(world):
    """Draw the recipe on the small world: `draw("procedure.assistants=2")` -> specs."""

    def _draw(*settings, recipe="takd"):
        resolved = resolve(
            registry(),
            recipe=recipe,
            settings=[
                f"teacher.model={world / 'teacher'}",
                f"task.train={world / 'train.jsonl'}",
                "task.max_length=32",
                "baseline=false",
                *settings,
            ],
            shapes=lambda stage: read_shapes(stage, registry()),
        )
        return prepare_run(resolved, registry())

    return _draw


def _models(teacher, student):
    def info(name, layers, width=768, heads=12, ffn=3072):
        return ModelInfo(name, "bert", layers, width, heads, heads, 64, ffn, 100, 2, 512)

    return Models(info("student", *student), info("teacher", *teacher))


@pytest.fixture
def config():
    """The configuration of a run of the recipe."""
    return resolve(registry(), recipe="takd").config


def _layers(found):
    return [table["layers"] for _, table in found]


def test_each_stage_is_taught_by_the_student_of_the_one_before(draw):
    stages = draw("procedure.assistants=[{layers = 3}]")
    assert [(b.name, b.student.layers) for b in stages] == [("assistant-1", 3), ("student", 2)]
    assert [[t.called for t in b.teachers] for b in stages] == [["teacher"], ["assistant-1"]]
    assert stages[1].start == "blocks 1, 3 of assistant-1"
    assert {str(b.expression) for b in stages} == {"kd"}


def test_sizes_are_spaced_evenly(config):
    assert _layers(shrink(1, config, _models((12,), (6,)))) == [9, 6]
    assert _layers(shrink(2, config, _models((12,), (6,)))) == [10, 8, 6]
    assert _layers(shrink(3, config, _models((24,), (4,)))) == [19, 14, 9, 4]


def test_widths_are_spaced_with_whole_heads(config):
    found = shrink(1, config, _models((12, 768, 12, 3072), (4, 256, 4, 1024)))
    assert {n: found[0][1][n] for n in ("layers", "hidden_size", "heads", "ffn_size")} == {
        "layers": 8,
        "hidden_size": 512,
        "heads": 8,
        "ffn_size": 2048,
    }


def test_the_last_is_the_student_of_the_run(draw):
    shape = ("student.layers=1", "student.hidden_size=16", "student.ffn_size=24")
    direct, chain = draw(*shape, "procedure.assistants=0"), draw(*shape)
    assert chain[-1].student == direct[-1].student


def test_models_become_strictly_smaller(draw, world):
    stages = draw("student.layers=1", "student.hidden_size=16", "procedure.assistants=2")
    sizes = [
        count_parameters(AutoModelForSequenceClassification.from_pretrained(world / "teacher"))
    ]
    for spec in stages:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(spec.student_config)
        sizes.append(count_parameters(model))
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["procedure.assistants=2"],
            r"assistant 2 \(layers 3, .*\) is not smaller than assistant 1 \(layers 3, .*fewer",
        ),
        (["procedure.assistants=[{layers = 4}]"], "assistant 1 .* is not smaller than the teacher"),
        (["procedure.assistants=[{layers = 2}]"], "the student .* is not smaller than assistant 1"),
        (["student.init=[1, 3]"], r"student.init = \[1, 3\] names blocks of one model"),
        (["student.heads=2", "student.init=random"], "heads differ in width. Name the sizes"),
        (["procedure.assistants=-1"], r"procedure.assistants must be .*-1 \(--set\)"),
        (["procedure.assistant=1"], "procedure.assistant.*Did you mean '.*procedure.assistants'"),
        (["procedure.name=tadk"], r"procedure.name \(--set\): unknown procedure 'tadk'.* 'takd'"),
    ],
)
def test_options_that_do_not_suit_the_models_are_refused(draw, settings, message):
    with pytest.raises(ConfigError, match=message):
        draw(*settings)


def test_a_run_without_a_teacher_is_refused(draw, world):
    with pytest.raises(ConfigError, match="the run has no teacher: its method hard uses none"):
        draw("method=hard", f"student.model={world / 'teacher'}")


def test_assistants_do_not_start_from_the_checkpoint_of_the_student(draw, world):
    small = draw("procedure.assistants=0", "student.layers=1")[-1].student_config
    folder = world.parent / "small-student"
    AutoModelForSequenceClassification.from_config(small).save_pretrained(folder)
    for file in (world / "teacher").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    assistant, student = draw(f"student.model={folder}", "procedure.assistants=[{layers = 3}]")
    assert assistant.start == "blocks 1, 2, 4 of teacher"
    assert student.start == f"the checkpoint {folder}"


def test_a_value_given_for_a_stage_stands_above_the_procedure(draw):
    stages = draw("stages.assistant-1.training.epochs=7", "stages.student.student.init=random")
    assert [b.config.training.epochs for b in stages] == [7, 3]
    assert [b.config.student.init for b in stages] == ["spaced", "random"]
    assert stages[0].origin("student.layers") == "procedure takd"


def _run(invoke, settings, *more):
    done = invoke("run", *settings[:2], *settings[4:], *more)
    assert done.code == 0, done.err
    return done


def test_a_chain_of_no_assistants_is_knowledge_distillation(invoke, settings, tmp_path):
    _run(invoke, settings, "--recipe", "kd", "--student-layers", 2, "--output", "kd")
    none = ("--set", "procedure.assistants=0")
    _run(invoke, settings, "--recipe", "takd", "--student-layers", 2, *none, "--output", "takd")
    kd, takd = (load_file(tmp_path / name / "student" / SAVED) for name in ("kd", "takd"))
    assert all(torch.equal(weight, takd[name]) for name, weight in kd.items())


@pytest.mark.exhaustive
def test_the_recipe_runs_from_the_command_line(invoke, settings, tmp_path):
    _run(invoke, settings, "--recipe", "takd", "--output", "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "assistant-1", "student, kd then kd"]
    sizes = [row["parameters"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    # What ran is written out: the same without the procedure, and it can be resumed.
    again = invoke("run", "--output", "out", "--resume")
    assert again.code == 0, again.err
    assert "procedure" not in (tmp_path / "out" / "config.toml").read_text().split("\n[[")[0]
