"""AutoDisc: the sandwich, the choice of the assistant, and whole runs of its recipe."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.grids import first_of

from gkd_core.api import ConfigError, Models, Step
from gkd_core.config.render import to_toml
from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.schedule import Schedule
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.models.slicing.select import sliced_copy
from gkd_core.models.slicing.widths import Widths, read_slices
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import registry
from gkd_core.runs.resolved import resolve_run
from gkd_core.students.importance import measure_importance
from gkd_core.students.ranking import Slicer
from gkd_core.testing import check_method
from gkd_core.testing.tiny import CLASSES, tiny_batch, tiny_model
from gkd_methods_multiteacher.autodisc.sandwich import AutoDisc, compared
from gkd_methods_multiteacher.autodisc.selection import CandidateCriterion, CandidateScores

KINDS = registry().kinds

CPU = torch.device("cpu")


def step(index=0):
    return Step(index, 10, 0, "assistants", torch.Generator())


class Sandwich:
    """A method with its student, a copy of the teacher, in fp64 and without dropout."""

    def __init__(self, kind="classification", teacher_seed=0, **options):
        self.student = tiny_model(kind, 2, 0)
        self.teacher = tiny_model(kind, 2, teacher_seed)
        self.batch = tiny_batch(kind)
        extractors = [Extractor(m, find_sites(m)) for m in (self.student, self.teacher)]
        self.extractors = extractors
        labels = CLASSES if kind == "classification" else self.student.config.vocab_size
        infos = [
            ModelInfo.read(name, self.student.config, labels) for name in ("student", "teacher")
        ]
        self.method = AutoDisc(AutoDisc.Config(multiple=1, **options))
        found = measure_importance(extractors[0], [self.batch], CPU)
        self.method.slicer = Slicer.of(found, 1)
        member = ActiveMethod(
            "autodisc", Schedule.parse(1.0), (self.method,), (Models(*infos),), torch.Generator()
        )
        self.objective = Objective([member])
        self.objective.build_modules(0)

    def loss(self, index=0):
        now = step(index)
        plan = self.objective.plan(now)
        captured = run_passes(plan, self.extractors[0], [self.extractors[1]], self.batch, now)
        terms = self.objective.terms(captured, self.batch, now, plan)
        return self.objective.total(terms, self.batch.counts(), now)

    def gradients(self, index=0):
        self.student.zero_grad()
        self.loss(index).backward()
        return {n: p.grad.clone() for n, p in self.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", first_of(["classification", "causal-lm"]))
def test_it_has_the_properties_every_method_must_have(kind):
    check_method(AutoDisc, {"scales": [1.0]}, [kind])


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_loss_by_hand(kind):
    """One half of the squared error of the states and of the divergence, over the slices."""
    sandwich = Sandwich(kind, teacher_seed=3, scales=[1.0, 0.5], temperature=2.0)
    batch, slicer = sandwich.batch, sandwich.method.slicer
    small = sliced_copy(sandwich.student, slicer.kept(slicer.widths(0.5)))
    with torch.no_grad():
        known = sandwich.teacher(**batch.inputs, output_hidden_states=True)
        found = []
        for model in (sandwich.student, small):
            mine = model(**batch.inputs, output_hidden_states=True)
            pairs = zip(mine.hidden_states[:2], known.hidden_states[:2], strict=True)
            last = (states(model, mine), states(sandwich.teacher, known))
            errors = [(a - b)[batch.mask].square().mean() for a, b in (*pairs, last)]
            logits = [o.logits.flatten(0, -2) / 2 for o in (mine, known)]
            if kind == "causal-lm":
                logits = [each[batch.targets.index] for each in logits]
            p = logits[1].softmax(-1)
            kl = (p * (p.log() - logits[0].log_softmax(-1))).sum(-1).mean()
            found.append(0.5 * (sum(errors) / 3 + 4 * kl))
    expected = sum(found) / 2
    torch.testing.assert_close(sandwich.loss().detach(), expected, rtol=1e-9, atol=0)


def states(model, output):
    """The last hidden state before a final norm, which Hugging Face counts in."""
    if model.config.model_type == "bert":
        return output.hidden_states[-1]
    kept = []
    handle = model.model.layers[-1].register_forward_hook(lambda m, a, o: kept.append(o))
    model(**tiny_batch("causal-lm").inputs)
    handle.remove()
    return kept[0] if torch.is_tensor(kept[0]) else kept[0][0]


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_gradient_of_the_sandwich_is_the_mean_of_those_of_its_candidates(kind):
    scales = [0.75, 0.5, 0.25]
    together = Sandwich(kind, teacher_seed=3, scales=scales).gradients()
    alone = [Sandwich(kind, teacher_seed=3, scales=[s]).gradients() for s in scales]
    for name, gradient in together.items():
        mean = sum(each[name] for each in alone) / len(scales)
        # The norms of Llama compute in fp32.
        atol = 1e-6 if kind == "causal-lm" else 1e-14
        torch.testing.assert_close(gradient, mean, rtol=1e-9, atol=atol)


def test_nothing_outside_the_widest_candidate_has_a_gradient():
    sandwich = Sandwich(teacher_seed=3, scales=[0.5, 0.25])
    gradients, slicer = sandwich.gradients(), sandwich.method.slicer
    kept = slicer.kept(slicer.widths(0.5))
    for layer, (heads, neurons) in enumerate(zip(kept.heads, kept.neurons, strict=True)):
        block = f"bert.encoder.layer.{layer}"
        outside = sorted(set(range(64)) - set(neurons))
        assert outside
        assert gradients[f"{block}.intermediate.dense.weight"][outside].eq(0).all()
        assert gradients[f"{block}.output.dense.weight"][:, outside].eq(0).all()
        inside = gradients[f"{block}.intermediate.dense.weight"][list(neurons)]
        assert inside.ne(0).any(1).all()
        lost = [8 * head + i for head in set(range(4)) - set(heads) for i in range(8)]
        assert gradients[f"{block}.attention.self.value.weight"][lost].eq(0).all()
        assert gradients[f"{block}.attention.output.dense.weight"][:, lost].eq(0).all()


def test_whole_student_equal_to_its_teacher_has_no_gradient():
    sandwich = Sandwich(scales=[1.0])
    assert float(sandwich.loss().detach()) == pytest.approx(0, abs=1e-14)
    assert all(g.abs().max() < 1e-14 for g in sandwich.gradients().values())


def test_compared_states():
    assert compared(12, 12) == [(i, i) for i in (0, 2, 4, 6, 8, 10, 12)]
    assert compared(4, 4) == [(i, i) for i in range(5)]
    assert compared(3, 6) == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_members_of_a_sampled_sandwich():
    scales = [number / 20 for number in range(20, 0, -1)]
    for kind in ("strided", "random"):
        method = AutoDisc(AutoDisc.Config(scales=scales, sandwich=kind, others=4))
        steps = [method.members(step(index)) for index in range(30)]
        assert all(len(s) == 8 and s[0] == 1.0 and s[-3:] == scales[-3:] for s in steps)
        assert all(s == sorted(s, reverse=True) for s in steps)
        assert steps == [method.members(step(index)) for index in range(30)]
        assert (len({tuple(s) for s in steps}) > 1) == (kind == "random")
    assert AutoDisc(AutoDisc.Config(scales=scales)).members(step()) == scales


TABLE = {0.5: 0.90, 0.4: 0.88, 0.3: 0.88, 0.2: 0.80, 0.1: 0.70}


def test_selection_by_hand():
    def select(weight, target=0.1, table=TABLE):
        return CandidateCriterion(weight, target).select(table)

    assert select(0.0) == 0.5  # the best metric
    assert select(0.05) == 0.5  # 0.925, against 0.91 and 0.915
    assert select(0.2) == 0.3  # 1.02, against 1.0 at 0.5 and 0.4
    assert select(1e9) == 0.1
    assert select(1e9, target=0.2) == 0.2  # never smaller than the student
    assert select(0.0, table={0.5: 0.8, 0.4: 0.9, 0.3: 0.9}) == 0.4  # a tie: the largest
    chosen = [select(weight / 100) for weight in range(300)]
    assert chosen == sorted(chosen, reverse=True)  # more lambda, never a larger scale
    assert len(set(chosen)) > 2


def test_trial_keeps_the_best_and_tells_when_the_trade_off_got_better():
    trial, choice = CandidateScores(), CandidateCriterion(0.2, 0.1)
    assert trial.judge({0.5: 0.6, 0.1: 0.3}, True, choice, 10)
    assert (trial.selected, trial.step) == (0.5, 10)
    assert not trial.judge({0.5: 0.5, 0.1: 0.5}, True, choice, 20)
    assert trial.metrics == {0.5: 0.6, 0.1: 0.5}
    assert trial.judge({0.5: 0.5, 0.1: 0.55}, True, choice, 30)
    assert (trial.selected, trial.step) == (0.1, 30)
    lower = CandidateScores()
    assert lower.judge({0.5: 20.0, 0.1: 200.0}, False, choice, 10)
    assert lower.performances == {0.5: 0.05, 0.1: 0.005}
    assert lower.metrics == {0.5: 20.0, 0.1: 200.0}


def test_state_survives_json():
    method = Sandwich(scales=[0.5, 0.1]).method
    method.trial.judge({0.5: 0.6, 0.1: 0.3}, True, method.choice, 10)
    again = AutoDisc(method.config)
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert again.slicer == method.slicer
    assert again.trial == method.trial


@pytest.mark.parametrize(
    ("scales", "problem"),
    [
        ("[0.5,0.5]", "from large to small"),
        ("[0.1,0.5]", "from large to small"),
        ("[1.5]", "not 1.5"),
        ("[0.505]", "not 0.505"),
        ("[]", "a list of at least 1"),
    ],
)
def test_wrong_scales_are_refused(invoke, world, scales, problem):
    done = invoke("explain", "--recipe", "autodisc", "--set", f"autodisc.scales={scales}")
    assert done.code == 2
    assert problem in " ".join(done.err.split())


def test_a_student_larger_than_every_candidate_is_refused():
    for scales in ([0.5, 0.1], [1.0]):
        assert AutoDisc.Config(scales=scales, target=scales[0]).target == scales[0]
    with pytest.raises(ValidationError, match=r"is as large as `target` = 0\.6, and an assistant"):
        AutoDisc.Config(scales=[0.5, 0.1], target=0.6)


@pytest.fixture
def arguments(world):
    """A run of the recipe on the small world: two epochs of six steps in each stage."""
    return [
        *("run", "--recipe", "autodisc", "--teacher", world / "teacher", "--no-baseline"),
        *("--data", world / "train.jsonl", "--set", f"task.validation={world}/validation.jsonl"),
        *("--set", "task.max_length=32", "--set", "training.batch_size=16"),
        *("--set", "training.epochs=2", "--set", "training.lr=1e-3"),
        *("--set", "autodisc.multiple=1", "--set", "autodisc.scales=[0.75,0.5,0.25]"),
        *("--set", "student.scale=0.25"),
    ]


@pytest.mark.exhaustive
def test_recipe_hands_on_the_assistant_and_the_students_slice_of_it(
    invoke, arguments, world, tmp_path
):
    ran = invoke(*arguments, "--set", "autodisc.trade_off=0", "--output", "run")
    assert ran.code == 0, ran.err
    run = tmp_path / "run"
    told = json.loads((run / "stages" / "assistants" / "candidates.json").read_text())
    assert told["target"] == 0.25
    rows = {row["scale"]: row for row in told["candidates"]}
    metrics = {scale: row["metric"] for scale, row in rows.items()}
    assert metrics[told["selected"]] == max(metrics.values())
    sizes = [rows[scale]["parameters"] for scale in (0.75, 0.5, 0.25)]
    assert sizes == sorted(set(sizes), reverse=True)
    assistant = load(run / "stages" / "assistants" / "student")
    chosen = rows[told["selected"]]
    assert Widths.read(assistant.config) == Widths.parse(chosen["widths"])
    assert count_parameters(assistant) == chosen["parameters"]
    student = load(run / "student")
    assert Widths.read(student.config) == Widths.parse(rows[0.25]["widths"])
    assert Widths.read(student.config) == read_slices(assistant.config)[0.25]
    table = (run / "autodisc-assistants.txt").read_text()
    assert f"{told['selected']:g} *" in table
    assert "1 of them distilled" in table
    assert (run / "autodisc-assistants.png").stat().st_size > 1000
    assert "autodisc-assistants.png" in (run / "report.html").read_text()
    done = invoke(
        *("eval", run / "stages" / "assistants" / "student", "--json"),
        *("--data", world / "validation.jsonl", "--set", "task.max_length=32"),
    )
    accuracy = json.loads(done.out)["rows"][0]["metrics"]["accuracy"]
    assert accuracy == pytest.approx(chosen["metric"])


def load(directory):
    return load_teacher(str(directory), KINDS["classification"], ("neg", "pos"), False, "model")


@pytest.mark.exhaustive
def test_student_as_large_as_the_assistant_is_done(invoke, arguments, tmp_path):
    ran = invoke(*arguments, "--set", "autodisc.trade_off=1000", "--output", "run")
    assert ran.code == 0, ran.err
    assert "the assistant is as small as the student, which is done" in ran.out
    run = tmp_path / "run"
    done = json.loads((run / "stages" / "student" / "done.json").read_text())
    assert done["steps"] == 0
    told = json.loads((run / "stages" / "assistants" / "candidates.json").read_text())
    assert done["best"] == pytest.approx(told["candidates"][-1]["metric"])
    weights = [run / "student", run / "stages" / "assistants" / "student"]
    student, assistant = (load_file(path / "model.safetensors") for path in weights)
    assert all(torch.equal(student[name], assistant[name]) for name in student)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_student_of_an_assistant_in_a_directory_is_that_of_the_recipe(invoke, arguments, tmp_path):
    """As in a run for each candidate: the same assistant gives the same student."""
    ran = invoke(*arguments, "--set", "autodisc.scales=[0.5]", "--output", "run")
    assert ran.code == 0, ran.err
    alone = [each for each in arguments if each not in ("--recipe", "autodisc")]
    alone[alone.index("--teacher") + 1] = "run/stages/assistants/student"
    (tmp_path / "alone.toml").write_text(ALONE)
    alone += ["--set", "stages.student.autodisc.scales=[1.0]", "--output", "alone"]
    ran = invoke(alone[0], "alone.toml", *alone[1:])
    assert ran.code == 0, ran.err
    one, other = (load_file(tmp_path / run / "student" / SAVED) for run in ("run", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)


SAVED = "model.safetensors"
ALONE = """
[training]
weight_decay = 0.01
warmup = 0.1
clip = 5.0
[[stages]]
name = "student"
method = "autodisc"
student.layers = "all"
"""


def test_a_search_in_the_stage_of_the_student_is_refused(invoke, arguments, tmp_path):
    own = ("--set", "stages.student.autodisc.scales=[0.75,0.5]")
    refused = invoke(*arguments, *own, "--output", "run")
    assert refused.code == 2
    said = " ".join(refused.err.split())
    assert "autodisc.scales = [0.75, 0.5] (--set) would make stage 'student' search" in said
    assert "stages.assistants.autodisc.scales" in said
    assert not (tmp_path / "run").exists()


def test_scale_of_the_student_is_said_once(world, tmp_path):
    """Only the student is a slice, also in the run file that a run leaves."""
    places = {"teacher": str(world / "teacher"), "task.train": str(world / "train.jsonl")}
    flags = {**places, "student.scale": 0.25, "task.max_length": 32, "baseline": False}
    given = {key: (value, "test") for key, value in flags.items()}
    found = resolve_run(recipe="autodisc", flags=given)
    (tmp_path / "run.toml").write_text(to_toml(found))
    stored = resolve_run([tmp_path / "run.toml"])
    resumed = resolve_run([tmp_path / "run.toml"], recipe="autodisc", flags=given, before=stored)
    for each in (found, stored, resumed):
        assistants, student = each.stages
        assert (assistants.config.student.slice, student.config.student.slice) == (None, 0.25)
        assert assistants.config.options["autodisc"].target == 0.25
        assert student.config.options["autodisc"].scales == [1.0]
    with pytest.raises(ConfigError, match=r"set student\.scale to a share below 1"):
        resolve_run(recipe="autodisc", flags=given | {"student.scale": (1.0, "test")})
    with pytest.raises(ConfigError, match=r"student\.scale = 0\.25; set student"):
        resolve_run(recipe="autodisc", flags=given | {"autodisc.target": (0.2, "test")})


@pytest.mark.slow
@pytest.mark.exhaustive
def test_run_killed_in_each_stage_ends_bit_equal(invoke, kill, arguments, tmp_path):
    """With a real SIGKILL while the assistants are trained, and another one in the student."""
    more = ["--set", "training.evaluate_every=3", "--set", "autodisc.scales=[0.75,0.5]"]
    killed = tmp_path / "killed"
    kill("assistants", 4, *arguments, *more, "--output", killed)
    kill("student", 4, *arguments, *more, "--output", killed, "--resume")
    assert not (killed / "student").exists()
    for options in (("--output", killed, "--resume"), ("--output", tmp_path / "whole")):
        done = invoke(*arguments, *more, *options)
        assert done.code == 0, done.err
    for name in ("student", "stages/assistants/student"):
        one, other = (load_file(tmp_path / run / name / "model.safetensors") for run in RUNS)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = ((tmp_path / run / CANDIDATES).read_text() for run in RUNS)
    assert one == other


RUNS = ("killed", "whole")
CANDIDATES = "stages/assistants/candidates.json"
