"""The outline of a run: what `gkd explain` prints and plugins may refuse."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from gkd_core.api import hookimpl
from gkd_core.errors import ConfigError
from gkd_core.runs.outline import RunOutline, outline_stage
from gkd_core.training.assembly import build_stage


def _plan(run):
    return outline_stage(run.last)


def test_passes_name_what_is_captured_with_its_size_and_readers(prepare_run):
    outline = _plan(prepare_run("method=pkd+soft+kd", "training.accumulation=2"))
    teacher, student = outline.passes
    assert outline.batch == (8, 32)
    assert [c.path for c in teacher.captures] == ["hidden[2]|cls", "logits"]
    assert [c.path for c in student.captures] == ["hidden[1]|cls", "logits"]
    hidden, logits = teacher.captures
    assert (hidden.shape, hidden.bytes, hidden.readers) == ((8, 32), 8 * 32 * 4, ("pkd",))
    assert (logits.shape, logits.readers) == ((8, 2), ("soft", "kd"))


def test_captured_tensors_have_the_planned_shapes(prepare_run, tmp_path):
    run = prepare_run("method=pkd+soft", "training.length_bucketing=false")
    planned = {c.path: c.shape for c in _plan(run).passes[0].captures}
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    (teacher,) = stage.teachers
    (main,) = run.last.first_step.passes
    batch = stage.collator.collate(stage.train, list(range(16)), 0)
    features = teacher.run(main.captures("teacher", 0), batch.inputs)
    assert {str(c): tuple(t.shape) for c, t in features.tensors.items()} == planned


@pytest.mark.parametrize(
    ("method", "teacher", "student"),
    [
        ("soft", "the logits", "the logits"),
        ("pkd", "block 2 of 4", "the last block and norm (no head)"),
    ],
)
def test_passes_say_where_they_end(prepare_run, method, teacher, student):
    passes = _plan(prepare_run(f"method={method}")).passes
    assert [one.stops_after for one in passes] == [teacher, student]


def test_teacher_that_nobody_reads_does_not_run(prepare_run):
    outline = _plan(prepare_run("method=hard"))
    teacher, student = outline.passes
    assert (teacher.stops_after, teacher.captures) == ("nothing", ())
    assert student.stops_after == "the logits"


def test_every_teacher_has_a_pass_of_its_own(prepare_run, world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "second")
    outline = _plan(prepare_run("method=soft", teachers=("teacher", tmp_path / "second")))
    assert [one.model for one in outline.passes] == ["teacher", "second", "student"]


def test_options_tell_where_their_values_came_from(prepare_run):
    outline = _plan(
        prepare_run("method=2*soft", "soft.temperature=2", file="[soft]\nscale_t2 = false\n")
    )
    (method,) = outline.methods
    assert method.weight == "2"
    assert method.options["temperature"].value == 2.0
    assert method.options["temperature"].origin == "--set"
    assert "own.toml" in method.options["scale_t2"].origin


def test_plan_survives_json(prepare_run):
    outline = RunOutline((_plan(prepare_run("method=linear(0 -> 1)*pkd+soft")),))
    text = json.dumps(outline.to_json())
    (stage,) = json.loads(text)["stages"]
    assert stage["method"] == "linear(0 -> 1, over=100%)*pkd+soft"
    assert stage["passes"][0]["captures"][0]["path"] == "hidden[2]|cls"


def test_planning_changes_no_random_state(prepare_run):
    state = torch.get_rng_state()
    _plan(prepare_run("method=pkd+soft"))
    assert torch.equal(torch.get_rng_state(), state)


def test_plugin_may_refuse_a_plan_before_any_weight_is_loaded(
    prepare_run, registry_with, monkeypatch
):
    class Refuses:
        """A plugin."""

        @hookimpl
        def gkd_check_outline(self, outline):
            """Refuse plans that read logits."""
            raise ConfigError(f"no {outline.stages[0].methods[0].name} today")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    with pytest.raises(ConfigError, match="no soft today"):
        prepare_run("method=soft", registry=registry_with(Refuses()))
