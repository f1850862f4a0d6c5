"""DGKD: every larger model teaches, some left out at random."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from gkd_core.api import ModelInfo, Models, Step
from gkd_core.config.resolve import resolve
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.runs.spec_builder import read_shapes
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step
from gkd_methods_multiteacher.dgkd import DenseGuidance


@pytest.fixture
def draw(world):
    """Draw a run on the small world: `draw("procedure.name=dgkd")` -> specs."""

    def _draw(*settings, **options):
        data = (f"task.train={world / 'train.jsonl'}", "task.max_length=32", "baseline=false")
        shapes = {"shapes": lambda stage: read_shapes(stage, registry())}
        return prepare_run(
            resolve(registry(), settings=[*data, *settings], **shapes, **options), registry()
        )

    return _draw


def _combiner(survival, teachers=3):
    info = ModelInfo("m", "bert", 2, 8, 2, 2, 4, 16, 100, 2, 32)
    config = DenseGuidance.Config(survival=survival)
    return DenseGuidance(config, [Models(info, info)] * teachers)


def _weights(combiner, generator, index):
    step = Step(index, 1000, 0, "distil", generator)
    return [combiner.weight(n, None, None, None, step) for n in range(len(combiner.models))]


def test_every_larger_model_teaches_every_smaller_one(draw, world):
    teacher = f"teacher.model={world / 'teacher'}"
    stages = draw(teacher, "student.layers=1", "procedure.assistants=2", recipe="dgkd")
    assert [(b.name, b.student.layers) for b in stages] == [
        ("assistant-1", 3),
        ("assistant-2", 2),
        ("student", 1),
    ]
    assert [[t.called for t in b.teachers] for b in stages] == [
        ["teacher"],
        ["teacher", "assistant-1"],
        ["teacher", "assistant-1", "assistant-2"],
    ]
    assert [b.start.rpartition(" of ")[2] for b in stages] == ["teacher"] * 3
    assert {str(b.expression) for b in stages} == {"0.5*dgkd(soft)+0.5*hard"}


def test_all_teachers_of_the_run_teach_the_first_assistant_too(draw, world):
    two = f'teachers=[{{name = "a", model = "{world / "teacher"}"}}, ' + (
        f'{{name = "b", model = "{world / "teacher"}", placement = "offload"}}]'
    )
    assistant, student = draw(two, recipe="dgkd")
    assert [t.called for t in assistant.teachers] == ["a", "b"]
    assert [t.called for t in student.teachers] == ["a", "b", "assistant-1"]
    assert student.config.teachers[1].placement == "offload"


@pytest.mark.parametrize(("survival", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_certain_teachers_always_and_never_take_part(survival, expected):
    generator, combiner = torch.Generator().manual_seed(0), _combiner(survival)
    for index in range(5):
        assert _weights(combiner, generator, index) == [expected] * 3


@pytest.mark.exhaustive
def test_a_teacher_takes_part_as_often_as_it_survives():
    generator, combiner = torch.Generator().manual_seed(0), _combiner(0.75)
    found = torch.tensor([_weights(combiner, generator, index) for index in range(4000)])
    assert set(found.unique().tolist()) == {0.0, 1.0}
    # Three standard deviations of the mean of 4000 draws are 0.02.
    assert found.mean(0).tolist() == pytest.approx([0.75] * 3, abs=0.02)
    both = (found[:, 0] * found[:, 1]).mean()
    assert float(both) == pytest.approx(0.75**2, abs=0.03)


def test_draws_are_those_of_the_step_on_every_rank():
    here, there = (torch.Generator().manual_seed(7) for _ in range(2))
    for index in range(20):
        found = [_weights(_combiner(0.5), here, index) for _ in range(3)]
        assert found[0] == found[1] == found[2] == _weights(_combiner(0.5), there, index)


def test_survival_follows_its_schedule():
    generator, combiner = torch.Generator().manual_seed(0), _combiner("step(0 -> 1, over=50%)")
    drawn = [sum(_weights(combiner, generator, index)) for index in range(0, 1000, 50)]
    assert drawn == [0.0] * 10 + [3.0] * 10


@pytest.mark.parametrize("survival", [1.5, "linear(0.5 -> -1)"])
def test_survival_that_is_no_probability_is_refused(survival):
    with pytest.raises(ValidationError, match="must stay from 0 to 1"):
        DenseGuidance.Config(survival=survival)


def test_a_single_teacher_is_never_left_out():
    generator = torch.Generator().manual_seed(0)
    assert _weights(_combiner(0.0, teachers=1), generator, 0) == [1.0]


@pytest.fixture
def losses(draw, world, tmp_path):
    """Return the losses of a first step with so many copies of the teacher, in fp64."""

    def _losses(method, copies, survival):
        place = world / "teacher"
        names = [f'{{name = "t{n}", model = "{place}"}}' for n in range(copies)]
        settings = [f"teachers=[{', '.join(names)}]", f"method={method}", "student.layers=2"]
        settings += [f"dgkd.survival={survival}"] if "dgkd" in method else []
        (spec,) = draw(*settings, "training.batch_size=8")
        stage = build_stage(spec, registry(), tmp_path / "stage", None)
        for model in (stage.student.model, *(teacher.model for teacher in stage.teachers)):
            model.double().eval()
        batches = [stage.collator.collate(stage.train, p, 0) for p in stage.sampler.epoch(0)[0]]
        step = Step(0, 10, 0, "distil", torch.default_generator)
        return train_step(stage, batches, step).read()

    return _losses


@pytest.mark.exhaustive
def test_terms_are_summed_over_the_teachers(losses):
    one = losses("dgkd(soft)+hard", 1, 1.0)
    three = losses("dgkd(soft)+hard", 3, 1.0)
    plain = losses("soft+hard", 1, 1.0)
    assert one == pytest.approx(plain)
    assert three["soft"] == pytest.approx(3 * plain["soft"])
    assert three["hard"] == pytest.approx(plain["hard"])


def test_without_survivors_labels_alone_are_learnt(losses):
    found = losses("dgkd(soft)+hard", 2, 0.0)
    assert found["soft"] == 0
    assert found["total"] == pytest.approx(found["hard"])


@pytest.mark.exhaustive
def test_the_recipe_runs_from_the_command_line(invoke, settings, tmp_path):
    done = invoke("run", "--recipe", "dgkd", *settings[:2], *settings[4:], "--output", "out")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["teacher", "assistant-1"]
