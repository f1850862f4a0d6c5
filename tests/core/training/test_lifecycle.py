"""What methods and combiners are told of a stage: when, in which order, and what it changes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.api import ConfigError, Method, TeacherCombiner, hookimpl
from gkd_core.training import loop

EVENTS = []
KEY = "validation/accuracy"


class Told:
    """Notes what it is told; a mixin of a method and of a combiner."""

    def on_stage_start(self, stage):
        EVENTS.append((self.name, "start", stage.name, self.seen))
        return self.skips

    def begin_step(self, step):
        EVENTS.append((self.name, "step", step.index))
        self.drawn = float(torch.rand((), generator=step.generator))

    def on_evaluate(self, stage, step, metrics):
        EVENTS.append((self.name, "evaluate", step.index, metrics[stage.metric]))
        self.seen += 1

    def on_stage_end(self, stage, error):
        EVENTS.append((self.name, "end", stage.name, type(error).__name__))

    skips = None
    seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Listens(Told, Method):
    """Adds a little to the distance of the logits, as drawn."""

    name = "listens"
    paper = "A test"

    def reads(self, models, step):
        return ["student.logits", "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        return {"listens": (1 + self.drawn) * (student.logits - teacher.logits).square().mean(-1)}


class Averages(Told, TeacherCombiner):
    """Weights all teachers alike."""

    name = "averages"
    paper = "A test"

    def weight(self, number, student, teacher, batch, step):
        return 1 / len(self.models)


class Plugin:
    """Provides both, and notes the hooks too."""

    @hookimpl
    def gkd_register_methods(self):
        return [Listens]

    @hookimpl
    def gkd_register_combiners(self):
        return [Averages]

    @hookimpl
    def gkd_stage_start(self, stage):
        EVENTS.append(("hook", "start", stage.name))

    @hookimpl
    def gkd_stage_end(self, stage):
        EVENTS.append(("hook", "end", stage.name))


@pytest.fixture
def prepare(prepare_run, registry_with):
    """Prepare a run of six steps with an evaluation and a checkpoint after every third.

    What was told before it begins is forgotten.
    """

    def _prepare(*settings, method="listens", plugins=(), **options):
        every = ("training.evaluate_every=3", "training.checkpoint_every=3")
        given = (f"method={method}", *every, *settings)
        run = prepare_run(*given, registry=registry_with(Plugin(), *plugins), **options)
        EVENTS.clear()
        return run

    return _prepare


def student(run):
    return load_file(run.student / "model.safetensors")


def names(*kinds):
    return [event[:2] for event in EVENTS if event[1] in kinds]


def test_a_method_is_told_of_its_stage_before_the_plugins_are(prepare):
    run = prepare()
    run.execute()
    steps = [("listens", "step", index) for index in range(6)]
    found = [event[:3] for event in EVENTS]
    assert found == [
        ("listens", "start", "distil"),
        ("hook", "start", "distil"),
        *steps[:3],
        ("listens", "evaluate", 2),
        *steps[3:],
        ("listens", "evaluate", 5),
        ("listens", "end", "distil"),
        ("hook", "end", "distil"),
    ]
    assert EVENTS[-2][3] == "NoneType"
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    accuracies = [entry[KEY] for entry in logged if KEY in entry]
    assert [event[3] for event in EVENTS if event[1] == "evaluate"] == accuracies


def test_planning_the_first_step_leaves_the_method_as_it_is(prepare_run, registry_with):
    run = prepare_run("method=averages(listens)", registry=registry_with(Plugin()))
    (member,) = run.last.members
    before = member.generator.get_state()
    assert run.last.first_step
    assert [event[:2] for event in EVENTS[-2:]] == [("averages", "step"), ("listens", "step")]
    assert not hasattr(member.methods[0], "drawn")
    assert not hasattr(member.ensemble.combiner, "drawn")
    assert torch.equal(member.generator.get_state(), before)


def test_a_combiner_and_each_object_of_a_method_are_told(prepare):
    run = prepare("training.steps=1", method="averages(listens)")
    run.execute()
    assert names("start") == [("averages", "start"), ("listens", "start"), ("hook", "start")]
    assert names("step") == [("averages", "step"), ("listens", "step")]


def test_a_resumed_stage_is_told_after_its_state_is_restored(prepare, monkeypatch):
    stock, calls = loop.train_step, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return stock(*arguments)

    with monkeypatch.context() as dying:
        dying.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare().execute()
    assert EVENTS[0] == ("listens", "start", "distil", 0)
    assert EVENTS[-2] == ("listens", "end", "distil", "KeyboardInterrupt")
    resumed = prepare()
    resumed.execute()
    assert EVENTS[0] == ("listens", "start", "distil", 1), "after one evaluation"
    assert names("step") == [("listens", "step")] * 3
    whole = prepare(directory="whole")
    whole.execute()
    one, other = student(resumed), student(whole)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_method_can_skip_the_stage(prepare, monkeypatch):
    monkeypatch.setattr(Listens, "skips", "there is nothing to do")
    lines = []
    run = prepare()
    monkeypatch.setattr(run.recorder, "say", lines.append)
    run.execute()
    assert names("step", "evaluate") == []
    assert names("end") == [("listens", "end"), ("hook", "end")]
    assert run.results["distil"].steps == 0
    assert "stage distil: there is nothing to do" in lines
    assert student(run)


@pytest.mark.parametrize("event", ["on_stage_start", "on_evaluate"])
def test_what_a_method_draws_meanwhile_changes_no_training(prepare, monkeypatch, event):
    prepare(directory="plain").execute()
    drawn = []
    stock = getattr(Listens, event)

    def noisy(self, *arguments):
        drawn.append(float(torch.rand(())))
        return stock(self, *arguments)

    monkeypatch.setattr(Listens, event, noisy)
    run = prepare(directory="draws")
    run.execute()
    one, other = student(run), load_file(run.directory.parent / "plain/student/model.safetensors")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    again = len(drawn)
    prepare(directory="again").execute()
    assert drawn[again:] == drawn[:again], "a resumed run draws the same"


class Meddles:
    """Draws at random, changes the process, and what it is told."""

    def meddle(self, values):
        torch.rand(())
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        values.clear()

    @hookimpl
    def gkd_stage_start(self):
        self.meddle({})

    @hookimpl
    def gkd_step_end(self, losses):
        self.meddle(losses)

    @hookimpl
    def gkd_evaluate(self, metrics):
        self.meddle(metrics)


class Sees:
    """Notes the losses that it is told."""

    @hookimpl
    def gkd_step_end(self, losses):
        EVENTS.append(("sees", "losses", sorted(losses)))


def test_what_a_hook_changes_reaches_no_other_and_no_training(prepare, monkeypatch):
    prepare(directory="plain").execute()
    lines = []
    run = prepare(directory="meddled", plugins=[Meddles(), Sees()])
    monkeypatch.setattr(run.recorder, "say", lines.append)
    run.execute()
    one, other = student(run), load_file(run.directory.parent / "plain/student/model.safetensors")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert ("sees", "losses", ["listens", "total"]) in EVENTS
    changed = "the data type or the gradients of torch in gkd_step_end; the change is undone"
    assert any(line.startswith("plugin 'test-2'") and line.endswith(changed) for line in lines)


def test_an_error_of_a_method_ends_the_run(prepare, monkeypatch):
    def refuses(self, stage):
        raise ConfigError("no such device")

    monkeypatch.setattr(Listens, "on_stage_start", refuses)
    with pytest.raises(ConfigError, match="no such device"):
        prepare().execute()
    assert names("end") == [("listens", "end"), ("hook", "end")]


class Fails:
    """Follows a run; fails once, at the event `at`."""

    def __init__(self, at):
        self.at = at

    def note(self, *event):
        if event[0] == self.at:
            self.at = None
            raise KeyError("the plugin's own fault")
        EVENTS.append(("follows", *event))

    @hookimpl
    def gkd_step_end(self, step):
        self.note("logged", step.index)

    @hookimpl
    def gkd_evaluate(self, step):
        self.note("evaluated", step.index)

    @hookimpl
    def gkd_stage_end(self, stage):
        self.note("ended", stage.name)


RARELY = ("training.checkpoint_every=100", "training.log_every=2")


def told(who, what):
    return [event[2] for event in EVENTS if event[:2] == (who, what)]


@pytest.mark.parametrize(
    ("at", "saved"), [("logged", "step-00000002"), ("evaluated", "step-00000003")]
)
def test_a_hook_that_fails_costs_no_step(prepare, at, saved):
    whole = prepare(*RARELY, directory="whole")
    whole.execute()
    plugins = [Fails(at)]
    run, resumed = (prepare(*RARELY, plugins=plugins) for _ in range(2))
    with pytest.raises(KeyError, match="own fault"):
        run.execute()
    checkpoints = resumed.directory / "stages" / "distil" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [saved]
    resumed.execute()
    assert told("listens", "step") == list(range(6))
    assert told("listens", "evaluate") == told("follows", "evaluated") == [2, 5]
    assert told("follows", "logged") == [1, 3, 5]
    one, other = student(resumed), student(whole)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("call", ["begin_step", "loss"])
def test_a_method_that_fails_in_a_step_costs_only_that_step(prepare, monkeypatch, call):
    whole = prepare(*RARELY, directory="whole")
    whole.execute()
    stock = getattr(Listens, call)

    def fails(self, *arguments):
        step = arguments[-1]
        if (step.index, step.total) == (4, 6):  # and not when a step is only previewed
            raise KeyError("the plugin's own fault")
        return stock(self, *arguments)

    run, resumed = (prepare(*RARELY) for _ in range(2))
    with monkeypatch.context() as failing:
        failing.setattr(Listens, call, fails)
        with pytest.raises(KeyError, match="own fault"):
            run.execute()
    checkpoints = run.directory / "stages" / "distil" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000004"]
    resumed.execute()
    assert told("listens", "evaluate") == [2, 5]
    one, other = student(resumed), student(whole)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_of_an_event_only_those_are_told_again_who_were_not(prepare, monkeypatch):
    stock = Listens.on_evaluate

    def fails_once(self, *arguments):
        monkeypatch.setattr(Listens, "on_evaluate", stock)
        raise KeyError("the plugin's own fault")

    monkeypatch.setattr(Listens, "on_evaluate", fails_once)
    run, resumed = (prepare(*RARELY, method="averages(listens)") for _ in range(2))
    with pytest.raises(KeyError, match="own fault"):
        run.execute()
    resumed.execute()
    assert told("averages", "evaluate") == [2, 5]
    assert told("listens", "evaluate") == [2, 5]
    assert told("listens", "step") == list(range(6))


def test_an_error_at_the_end_keeps_the_student_and_all_are_told(prepare):
    plugins = [Fails("ended")]
    run, resumed = (prepare(plugins=plugins) for _ in range(2))
    with pytest.raises(KeyError, match="own fault"):
        run.execute()
    assert names("end") == [("listens", "end"), ("hook", "end")]
    before = student(run)
    resumed.execute()
    assert told("listens", "step") == list(range(6)), "no step is done again"
    assert all(torch.equal(weight, before[name]) for name, weight in student(resumed).items())


def test_an_error_at_the_end_does_not_hide_why_the_stage_failed(prepare, monkeypatch):
    def refuses(self, stage):
        raise ConfigError("no such device")

    monkeypatch.setattr(Listens, "on_stage_start", refuses)
    lines = []
    run = prepare(plugins=[Fails("ended")])
    monkeypatch.setattr(run.recorder, "say", lines.append)
    with pytest.raises(ConfigError, match="no such device"):
        run.execute()
    assert any("at the end of stage distil" in line and "own fault" in line for line in lines)


class Uses(Method):
    """Uses everything that a stage offers."""

    name = "uses"
    paper = "A test"

    def on_stage_start(self, stage):
        self.found = {
            "metrics": stage.evaluate_student(),
            "silent": stage.evaluate_student({"student.hidden[*]": torch.zeros_like}),
            "teacher": stage.evaluate_teacher(0),
            "blocks": [len(m.sites.blocks) for m in (stage.loaded_student, *stage.loaded_teachers)],
            "device": stage.device,
            "importance": stage.measure_importance(16),
        }
        self.stage = stage

    def reads(self, models, step):
        return ["student.logits", "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        return {"uses": (student.logits - teacher.logits).square().mean(-1)}


class UsesPlugin:
    """Provides it."""

    @hookimpl
    def gkd_register_methods(self):
        return [Uses]


@pytest.fixture
def used(prepare_run, registry_with):
    """The method of a run of one step."""
    run = prepare_run("method=uses", "training.steps=1", registry=registry_with(UsesPlugin()))
    run.execute()
    (member,) = run.last.members
    return member.methods[0]


def test_a_stage_can_be_evaluated_and_measured(used):
    found = used.found
    assert found["blocks"] == [2, 4]
    assert found["device"] == torch.device("cpu")
    assert set(found["metrics"]) == {"loss", "accuracy", "macro_f1"}
    assert found["teacher"]["loss"] != found["metrics"]["loss"] != found["silent"]["loss"]
    assert [len(heads) for heads in found["importance"].heads] == [4, 4]
    assert used.stage.metric == "accuracy"
    assert used.stage.higher_is_better
