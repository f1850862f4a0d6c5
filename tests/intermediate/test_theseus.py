"""BERT-of-Theseus: what runs in the student at which rate, and what of it learns."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.grids import first_of

from gkd_core.api import Models, Step
from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.schedule import Schedule
from gkd_core.objective.passes import evaluation_changes
from gkd_core.testing import check_method
from gkd_core.testing.tiny import tiny_model
from gkd_methods_intermediate.theseus import Theseus

KINDS = pytest.mark.parametrize("kind", ["classification", "causal-lm"])


def dressed(student, teacher):
    """Give a student the embedding and the head of a teacher."""
    with torch.no_grad():
        known = teacher.state_dict()
        for name, weight in student.state_dict().items():
            if "layer." not in name and "layers." not in name:
                weight.copy_(known[name])
    return student, teacher


def cross_entropy(model, batch, kind):
    logits = model(**batch.inputs).logits
    labels = batch.labels
    if kind == "causal-lm":
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
    return torch.nn.functional.cross_entropy(logits, labels)


@KINDS
def test_at_rate_1_the_student_runs_alone(trial, kind):
    one = trial("theseus", kind, rate=1)
    found = one.terms()["theseus"]
    torch.testing.assert_close(found, cross_entropy(one.student.model, one.batch, kind))


@KINDS
@pytest.mark.parametrize("layers", [(2, 4), (2, 5), (3, 3)])
def test_at_rate_0_the_teachers_stack_runs(trial, kind, layers):
    models = dressed(*(tiny_model(kind, n, seed) for seed, n in enumerate(layers)))
    none = trial("theseus", kind, models=models, rate=0)
    found = none.terms()["theseus"]
    torch.testing.assert_close(found, cross_entropy(models[1], none.batch, kind))


def test_the_teacher_itself_does_not_run(trial, monkeypatch):
    one = trial("theseus", rate=0.5)
    monkeypatch.setattr(one.teacher.model, "forward", lambda **_: pytest.fail("it does"))
    assert one.captures() == (["logits"], [])


def test_blocks_of_the_student_that_are_replaced_get_no_gradient(trial):
    one = trial("theseus", rate=0.5, layers=(4, 4))
    plan = one.objective.plan(Step(0, 10, 0, "test", torch.Generator()))
    ((request,),) = plan.requests.values()
    swapped = {write.places[0].layer for write in request.writes}
    assert 0 < len(swapped) < 4
    one.member.generator.manual_seed(0)
    one.terms()["theseus"].backward()
    for number, block in enumerate(one.student.sites.blocks, start=1):
        touched = any(weight.grad is not None for weight in block.parameters())
        assert touched == (number not in swapped)


def infos(layers):
    shape = ("bert", layers[0], 32, 4, 4, 8, 64, 64, 3, 64)
    student = ModelInfo("student", *shape)
    return Models(student, ModelInfo("teacher", "bert", layers[1], *shape[2:]))


def counts_of(rate, steps, layers=(6, 12)):
    """Numbers of student blocks in place, of each step."""
    method = Theseus(Theseus.Config(rate=rate))
    generator = torch.Generator().manual_seed(0)
    return [
        layers[0] - len(writes_of(method, infos(layers), Step(index, steps, 0, "test", generator)))
        for index in range(steps)
    ]


def writes_of(method, models, step):
    """What a method writes in a step that it has just begun."""
    method.models = models
    method.begin_step(step)
    return list(method.writes(models, step))


def test_as_many_blocks_are_replaced_as_the_rate_says():
    counts = torch.tensor(counts_of(0.3, 4000)).double()
    # 4 standard deviations of the mean of 4000 binomial draws
    assert counts.mean() == pytest.approx(0.3 * 6, abs=4 * (6 * 0.3 * 0.7 / 4000) ** 0.5)
    share_without = (counts == 0).double().mean()
    assert share_without == pytest.approx(0.7**6, abs=4 * (0.1176 * 0.8824 / 4000) ** 0.5)


def test_the_rate_rises_and_then_nothing_of_the_teacher_is_left():
    rate = Theseus().config.rate
    assert [rate.at(step, 100) for step in (0, 33, 66, 99)] == pytest.approx([0.3, 0.65, 1, 1])
    counts = counts_of(str(rate), 300)
    assert counts[198:] == [6] * 102
    assert min(counts[:198]) < 6


def test_a_student_block_stands_for_a_run_of_the_teachers():
    method = Theseus(Theseus.Config(rate=0))
    operations = writes_of(method, infos((3, 7)), Step(0, 1, 0, "test", torch.Generator()))
    assert [(o.site, o.by) for o in operations] == [
        ("student.block[1]", "teacher.block[1,2]"),
        ("student.block[2]", "teacher.block[3,4]"),
        ("student.block[3]", "teacher.block[5,6,7]"),
    ]


def test_only_blocks_learn():
    step = Step(0, 10, 0, "test", torch.Generator())
    assert Theseus().lr_factors(infos((2, 4)), step) == {"embedding": 0, "head": 0}


def test_the_student_is_evaluated_alone(trial):
    one = trial("theseus", rate=0)
    step = Step(0, 10, 0, "test", torch.Generator())
    plain = one.student.model(**one.batch.inputs).logits
    models = ([one.member], one.student, [one.teacher], one.batch, step)
    changes = evaluation_changes(*models)
    assert torch.equal(one.student.predict(one.batch.inputs, changes), plain)


@pytest.mark.parametrize("rate", first_of([0.4, 0, 1]))
def test_it_has_the_properties_every_method_must_have(rate, kinds):
    check_method(Theseus, {"rate": rate}, kinds)


def test_blocks_are_recomputed_as_they_were(trial):
    def gradient(checkpointing):
        one = trial("theseus", rate=0.5, layers=(4, 4))
        if checkpointing:
            one.student.model.train()
            one.student.model.config.hidden_dropout_prob = 0
            one.student.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in one.student.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        one.terms()["theseus"].backward()
        return [w.grad for w in one.student.model.parameters() if w.grad is not None]

    for plain, recomputed in zip(gradient(False), gradient(True), strict=True):
        torch.testing.assert_close(plain, recomputed)


def weights(path):
    return load_file(path / "model.safetensors")


@pytest.mark.exhaustive
def test_a_run_trains_blocks_only(invoke, settings, world, tmp_path):
    output = tmp_path / "run"
    arguments = ["--method", "theseus", *settings, "--set", "student.init=first"]
    done = invoke("run", *arguments, "--output", output)
    assert done.code == 0, done.err
    teacher, student = weights(world / "teacher"), weights(output / "student")
    moved = {name for name, weight in student.items() if not torch.equal(weight, teacher[name])}
    assert moved
    assert all("encoder.layer." in name for name in moved)


@pytest.mark.exhaustive
def test_a_resumed_run_draws_what_it_would_have_drawn(interrupted, settings):
    whole, broken = interrupted(
        *("--method", "theseus", *settings, "--set", "theseus.rate=0.5"), after=3
    )
    assert whole == broken


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["student.hidden_size=16", "student.heads=2"], "the student's hidden size is 16"),
        (["theseus.rate=1.5"], "theseus.rate: must stay from 0 to 1, got 1.5"),
        (["student.init=[1,2,3,4,4]"], "needs a student no deeper"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_are_read(
    invoke, settings, monkeypatch, values, message
):
    monkeypatch.setattr("gkd_core.runs.run.build_stage", lambda *_: pytest.fail("too late"))
    given = [part for value in values for part in ("--set", value)]
    done = invoke("run", "--method", "theseus", *settings[:2], *settings[4:], *given)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_it_cannot_share_a_student_with_another_that_swaps_blocks(invoke, settings, world):
    done = invoke(
        *("explain", "theseus", *settings[2:], "--set", f"teachers.0.model={world / 'teacher'}"),
        *("--set", f"teachers.1.model={world / 'teacher'}", "--set", "teachers.1.name=second"),
        *("--set", "theseus.rate=0"),
    )
    assert done.code == 2
    assert "theseus changes student.block[1] for each teacher; it works with one" in " ".join(
        done.err.split()
    )


def test_explain_shows_what_is_swapped_and_frozen(invoke, settings):
    done = invoke("explain", "theseus", *settings, "--set", "theseus.rate=0")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "swap student.block[1] for teacher.block[1,2] by theseus" in text
    assert "embedding, head: frozen, for theseus" in text
    assert "teacher: not run, nothing reads it" in text


def test_the_option_is_a_schedule():
    assert Theseus.Config(rate="step(0.5 -> 1, over=2500)").rate == Schedule(
        "step", 0.5, 1.0, 2500.0, relative=False
    )
    assert json.dumps(Theseus().config.model_dump(mode="json"))
