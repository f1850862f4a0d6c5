"""Passes and operations of methods: several forwards in a step, what each sees and changes."""

import pytest
import torch

from gkd_core.analysis.explanation import explain
from gkd_core.api import (
    Add,
    Interchange,
    Method,
    Pass,
    Perturb,
    Replace,
    Step,
    Swap,
    When,
    hookimpl,
)
from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.contract.schedule import Schedule
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses import mse, soft_labels
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod, plan_step
from gkd_core.runs.outline import RunOutline, outline_stage
from gkd_core.testing import check_method, tiny_batch, tiny_model
from gkd_core.training.assembly import build_stage

BATCH = tiny_batch("classification")
STEP = Step(0, 10, 0, "distil", torch.Generator())


class Declared(Method):
    """Reads the logits and whatever a test sets."""

    name = "declared"
    paper = "A test"
    borrows_blocks = True
    read = ("student.logits", "teacher.logits")
    written = ()
    extra = ()

    def reads(self, models, step):
        return self.read

    def writes(self, models, step):
        return self.written

    def passes(self, models, step):
        return self.extra

    def loss(self, student, teacher, batch, step):
        return {self.name: soft_labels(student.logits, teacher.logits, batch.targets, 1.0)}


class Other(Declared):
    """Another one."""

    name = "other"


def reverse(batch, step):
    return {name: value.flip(0) for name, value in batch.inputs.items()}


def make(*methods):
    student, teacher = tiny_model("classification", 4, seed=1), tiny_model("classification", 4, 2)
    models = Models(
        ModelInfo.read("student", student.config, 3), ModelInfo.read("teacher", teacher.config, 3)
    )
    members = [
        ActiveMethod(m.name, Schedule.parse(1), (m(),), (models,), torch.Generator().manual_seed(0))
        for m in methods
    ]
    return members, *(Extractor(model, find_sites(model)) for model in (student, teacher))


def run(*methods):
    """Run the passes of a step; return the views of the first method."""
    members, student, teacher = make(*methods)
    plan = plan_step(members, STEP)
    captured = run_passes(plan, student, [teacher], BATCH, STEP)
    return captured.views(plan.requests[methods[0].name][0])


def declare(**attributes):
    return type("Made", (Declared,), {"__doc__": "A test.", **attributes})


class Skip(torch.nn.Module):
    """A block that does nothing."""

    def forward(self, hidden, *args, **kwargs):
        return hidden


def test_a_pass_of_its_own_sees_other_inputs_and_shares_the_weights():
    method = declare(
        read=[f"{side}{run}.logits" for side in ("student", "teacher") for run in ("", "@turned")],
        extra=[Pass("turned", reverse)],
    )
    for view in run(method):
        torch.testing.assert_close(view.at("turned").logits, view.logits.flip(0))
        assert view.at("main") is view


SWAPPED = {
    "extra": [Pass("source", reverse), Pass("swapped")],
    "read": [
        f"{side}{run}.logits"
        for side in ("student", "teacher")
        for run in ("", "@source", "@swapped")
    ],
}


def interchanges(layer, **options):
    return [
        Interchange(f"{side}@swapped.hidden[{layer}]", f"{side}@source.hidden[{layer}]", **options)
        for side in ("student", "teacher")
    ]


def test_interchange_of_the_last_layer_gives_the_logits_of_the_source():
    for view in run(declare(written=interchanges("last"), **SWAPPED)):
        torch.testing.assert_close(view.at("swapped").logits, view.at("source").logits)
        assert not torch.allclose(view.at("swapped").logits, view.logits)


def test_interchange_where_no_position_is_chosen_is_the_plain_pass():
    none = interchanges(2, positions=lambda context: torch.zeros_like(context.batch.mask))
    for view in run(declare(written=none, **SWAPPED)):
        torch.testing.assert_close(view.at("swapped").logits, view.logits)


def test_interchange_at_chosen_positions_leaves_the_others():
    first = interchanges(2, positions=lambda context: torch.arange(10).expand(4, -1) == 0)
    reads = [f"student{run}.hidden[2]" for run in ("", "@source", "@swapped")]
    student, _ = run(declare(written=first, **SWAPPED | {"read": reads}))
    swapped = student.at("swapped").hidden[2]
    torch.testing.assert_close(swapped[:, 0], student.at("source").hidden[2][:, 0])
    torch.testing.assert_close(swapped[:, 1:], student.hidden[2][:, 1:])


def test_gradient_reaches_the_source_of_an_interchange():
    student, _ = run(declare(written=interchanges("last"), **SWAPPED))
    student.at("swapped").logits.square().sum().backward(retain_graph=True)
    student, _ = run(declare(written=interchanges("last"), **SWAPPED))
    assert student.at("swapped").logits.requires_grad


class Adversarial(Declared):
    """Moves the embedding up the gradient of its loss before the loss counts, as LRC-BERT does."""

    name = "adversarial"
    read = ("student.embedding", "student.logits", "student@moved.logits", "teacher.logits")
    extra = (Pass("moved"),)

    def __init__(self, config=None):
        super().__init__(config)
        self.losses = []

    def writes(self, models, step):
        return [Add("student@moved.embedding", self._direction)]

    def _direction(self, context):
        loss = self._loss(context.student, context.teacher, context.batch).values.sum()
        gradient = context.gradient(loss, context.student.embedding)
        return 1e-3 * gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-9)

    def _loss(self, student, teacher, batch):
        return soft_labels(student.logits, teacher.logits, batch.targets, 1.0)

    def loss(self, student, teacher, batch, step):
        plain, moved = (self._loss(s, teacher, batch) for s in (student, student.at("moved")))
        self.losses.append((plain.values.sum().item(), moved.values.sum().item()))
        return {self.name: moved}


def test_a_discarded_backward_gives_a_direction_and_no_parameter_a_gradient():
    members, student, teacher = make(Adversarial)
    objective, plan = Objective(members), plan_step(members, STEP)
    captured = run_passes(plan, student, [teacher], BATCH, STEP)
    assert all(parameter.grad is None for parameter in student.model.parameters())
    objective.terms(captured, BATCH, STEP, plan)
    ((plain, moved),) = members[0].methods[0].losses
    assert plain < moved < plain + 1e-2


@pytest.mark.exhaustive
def test_a_method_with_a_pass_of_its_own_keeps_what_every_method_must():
    kinds = ["classification", "causal-lm"]
    check_method(Adversarial, kinds=kinds)
    noisy = [Perturb("student.embedding", std=0.1)]
    check_method(declare(written=noisy), kinds=kinds)


def test_the_student_with_all_blocks_swapped_is_the_teachers_body():
    student, teacher, batch = *make()[1:], BATCH
    for part in ("embeddings", "pooler"):
        getattr(student.model.bert, part).load_state_dict(
            getattr(teacher.model.bert, part).state_dict()
        )
    student.model.classifier.load_state_dict(teacher.model.classifier.state_dict())
    written = [
        Swap("student.block[1]", "teacher.block[1,2]"),
        Swap("student.block[2]", "teacher.block[3]"),
        Swap("student.block[3]", "teacher.block[4]"),
        Swap("student.block[4]", Skip()),
    ]
    members = [make(declare(written=written))[0][0]]
    plan = plan_step(members, STEP)
    captured = run_passes(plan, student, [teacher], batch, STEP)
    learned, known = captured.views(plan.requests["declared"][0])
    assert torch.equal(learned.logits, known.logits)


def test_everyone_sees_what_is_changed_in_the_main_pass():
    loud = declare(name="loud", written=[Replace("student.logits", lambda t: 10 * t)])
    changed, _ = run(Declared, loud)
    plain, _ = run(Declared)
    assert torch.equal(changed.logits, 10 * plain.logits)


def test_an_operation_out_of_its_time_does_nothing():
    late = declare(written=[Replace("student.logits", torch.zeros_like, when=When(first=1))])
    assert torch.equal(run(late)[0].logits, run(Declared)[0].logits)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"read": ["student@a.logits"]}, "declared names the pass 'a', which it does not have"),
        ({"extra": [Pass("main")]}, "give each a unique name other than"),
        ({"extra": [Pass("a"), Pass("a")]}, "give each a unique name other than"),
        ({"written": [Replace("student.hidden[9]", abs)]}, r"student.hidden\[9\], but the student"),
        ({"written": [Replace("student.hiden[1]", abs)]}, "Did you mean 'hidden'"),
    ],
)
def test_what_a_step_cannot_have_is_refused(attributes, message):
    with pytest.raises(MethodError, match=message):
        plan_step(make(declare(**attributes))[0], STEP)


def test_borrowed_blocks_are_declared():
    silent = declare(borrows_blocks=False, written=[Swap("student.block[1]", "teacher.block[2]")])
    with pytest.raises(MethodError, match=r"declared runs teacher.block\[2\] in the student; decl"):
        plan_step(make(silent)[0], STEP)


def test_two_writers_of_one_place_are_refused_whatever_they_call_it():
    one = declare(name="one", written=[Replace("student.hidden[0]", torch.zeros_like)])
    two = declare(name="two", written=[Perturb("student.embedding", std=0.1)])
    with pytest.raises(MethodError, match=r"one and two both change student.hidden\[0\]"):
        plan_step(make(one, two)[0], STEP)
    plan_step(make(one, Declared)[0], STEP)


def test_a_view_without_such_a_pass_says_which_there_are():
    student, _ = run(declare(extra=[Pass("a")], read=["student@a.logits"]))
    with pytest.raises(MethodError, match=r"pass 'b'; its own passes there: a"):
        student.at("b")


def test_draws_are_the_same_with_other_methods_and_from_the_same_seed():
    noisy = declare(name="noisy", written=[Perturb("student.embedding", std=0.5)])
    alone, _ = run(noisy)
    with_other, _ = run(noisy, Other)
    assert torch.equal(alone.logits, with_other.logits)
    assert not torch.equal(alone.logits, run(Declared)[0].logits)


class Plugin:
    """Gives methods to a run."""

    def __init__(self, *methods):
        self.methods = methods

    @hookimpl
    def gkd_register_methods(self):
        return self.methods


@pytest.fixture
def prepare(prepare_run, registry_with):
    def _prepare(*methods, expression="declared+soft", **options):
        registry = registry_with(Plugin(*methods))
        return prepare_run(f"method={expression}", registry=registry, **options)

    return _prepare


def test_explain_shows_passes_and_operations(prepare):
    method = declare(written=interchanges(1), **SWAPPED)
    text = explain(RunOutline((outline_stage(prepare(method).last),)), width=100)
    assert "teacher in declared@source: up to the logits" in text
    assert "student in declared@swapped: up to the logits" in text
    shown = "interchange student@swapped.hidden[1] with student@source.hidden[1]  by declared"
    assert shown in " ".join(text.split("\n")).replace("   ", "")


def test_operations_are_checked_before_anything_is_loaded(prepare):
    deep = declare(written=[Replace("student.hidden[3]", torch.zeros_like)])
    with pytest.raises(MethodError, match=r"student.hidden\[3\], but the student has 2 layers"):
        prepare(deep)


def test_an_operation_of_evaluations_changes_the_metrics_and_not_the_training(prepare, tmp_path):
    constant = Replace("student.logits", torch.zeros_like, when=When(mode="eval"))
    losses = {}
    for name, written in (("plain", ()), ("changed", (constant,))):
        run_ = prepare(declare(written=written), directory=name)
        run_.execute()
        log = (tmp_path / name / "metrics.jsonl").read_text()
        losses[name] = [line for line in log.splitlines() if '"loss/total"' in line]
        result = run_.results["distil"]
        if written:
            # Equal logits always give the first class.
            assert result.best == pytest.approx(0.5, abs=0.2)
    keys = ('"loss/total"', '"loss/soft"')
    assert len(losses["plain"]) == len(losses["changed"]) > 0
    for plain, changed in zip(losses["plain"], losses["changed"], strict=True):
        assert [p for p in plain.split(",") if any(k in p for k in keys)] == [
            p for p in changed.split(",") if any(k in p for k in keys)
        ]


def test_a_step_with_passes_is_trained_and_resumed_like_any_other(prepare, tmp_path):
    run_ = prepare(Adversarial, expression="adversarial+soft")
    stage = build_stage(run_.last, run_.registry, tmp_path / "stage", None)
    assert [p.name for p in stage.objective.plan(STEP).passes] == ["main", "adversarial@moved"]
    run_.execute()
    assert run_.results["distil"].steps == 6


def test_mse_between_passes_is_a_consistency_loss():
    class Consistent(Declared):
        """Student logits under noise against those without."""

        name = "consistent"
        read = ("student.logits", "student@noisy.logits")
        written = (Perturb("student@noisy.embedding", std=0.1),)
        extra = (Pass("noisy"),)

        def loss(self, student, teacher, batch, step):
            noisy = student.at("noisy").logits
            return {self.name: mse(student.logits, noisy, batch.samples)}

    members, student, _ = make(Consistent)
    plan = plan_step(members, STEP)
    captured = run_passes(plan, student, [], BATCH, STEP)
    (term,) = Objective(members).terms(captured, BATCH, STEP, plan).values()
    assert term.values.min() > 0
