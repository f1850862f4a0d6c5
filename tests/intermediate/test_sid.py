"""SID: which layers are learnt when, what that leaves untouched, and that it survives a resume."""

import json
from math import log
from types import SimpleNamespace

import pytest
import torch

from gkd_core.api import MethodError, ModelInfo, Models, Step
from gkd_core.losses import Relation
from gkd_core.testing import check_method
from gkd_core.testing.tiny import tiny_model
from gkd_methods_intermediate.sid import SID

UP = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
RIGHT = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
NEAR = torch.tensor([[3.0, 4.0]], dtype=torch.float64)


def info(name, layers, heads=4, width=32):
    return ModelInfo(name, "bert", layers, width, heads, heads, width // heads, 64, 100, 2, 64)


def newest(method, layers, total, steps=None):
    """The newest layer being learnt in each step; 0 where the prediction is."""
    method.models = models = Models(info("student", layers), info("teacher", 2 * layers))
    found = []
    for index in range(total) if steps is None else steps:
        step = Step(index, total, 0, "test", torch.Generator())
        method.begin_step(step)
        paths = list(method.reads(models, step))
        learnt = [
            layer for layer in range(1, layers + 1) if f"student.hidden[{layer}]|cls" in paths
        ]
        assert ("student.logits" in paths) is (not learnt)
        found.append(max(learnt, default=0))
    return found


def changes(phases):
    return [index for index in range(1, len(phases)) if phases[index] != phases[index - 1]]


def attend(*scores):
    """A relation with one head and these scores in each row."""
    query = torch.tensor(scores, dtype=torch.float64).expand(1, 1, len(scores), len(scores))
    return Relation(
        query, torch.eye(len(scores), dtype=torch.float64)[None, None], None, False, 1.0
    )


@pytest.fixture
def sid(terms):
    """Terms of the first phases of a method whose states and scores are given by layer."""

    def _sid(method, states, known, scores=((0.0, 0.0), (0.0, 0.0)), index=0, total=3):
        student, teacher = {}, {}
        for layer, (mine, theirs) in enumerate(zip(states, known, strict=True), start=1):
            student |= {f"hidden[{layer}]|cls": mine, f"attention[{layer}]": attend(*scores[0])}
            teacher |= {f"hidden[{layer}]|cls": theirs, f"attention[{layer}]": attend(*scores[1])}
        layers = len(states)
        method.models = models = Models(info("student", layers), info("teacher", layers))
        step = Step(index, total, 0, "test", torch.Generator())
        method.begin_step(step)
        assert list(method.reads(models, step))
        mask = torch.ones(1, 2, dtype=torch.long)
        found = terms(
            method,
            student,
            teacher,
            layers=(layers, layers),
            mask=mask,
            index=index,
            total=total,
        )
        return {name: value.item() for name, value in found.items()}

    return _sid


def test_attention_is_compared_by_divergence_and_the_summary_by_its_direction(sid):
    # KL((.9, .1) || (.5, .5)) = .9 ln 1.8 + .1 ln .2; cos((3, 4), (2, 0)) = 3 / 5.
    found = sid(SID(), [NEAR], [RIGHT], scores=((0.0, 0.0), (log(9), 0.0)))
    assert found["attention"] == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2), abs=1e-12)
    assert found["cosine"] == pytest.approx(1 - 3 / 5, abs=1e-12)


@pytest.mark.parametrize(
    ("variant", "expected"), [("stacked", [1, 1.4, 2.4]), ("progressive", [1, 0.4, 1])]
)
def test_losses_of_lower_layers_are_kept_or_dropped(sid, variant, expected):
    method = SID(SID.Config(variant=variant))
    states, known = [UP, NEAR, RIGHT], [RIGHT, RIGHT, UP]
    found = [sid(method, states, known, index=k, total=4)["cosine"] for k in range(3)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_equal_models_have_nothing_to_learn_in_any_phase(trial, kind):
    same = trial("sid", kind, models=[tiny_model(kind, 2, seed=1) for _ in range(2)])
    phases = [same.terms(index, total=3) for index in range(3)]
    assert [set(phase) for phase in phases] == [{"attention", "cosine"}] * 2 + [{"soft"}]
    assert all(abs(value.item()) < 1e-12 for phase in phases for value in phase.values())


def test_the_loss_grows_with_every_layer_that_is_unlocked(trial):
    tried = trial("sid", layers=(3, 6))
    totals = [sum(tried.terms(index, total=4).values()).item() for index in range(3)]
    assert totals == sorted(totals)
    assert totals[0] > 0


@pytest.mark.parametrize(
    ("kind", "prefix"), [("classification", "bert.encoder"), ("causal-lm", "model")]
)
def test_layers_above_the_newest_receive_no_gradient(trial, kind, prefix):
    for newest_layer in (1, 2, 3):
        tried = trial("sid", kind, layers=(4, 4))
        for index in range(newest_layer):
            sum(tried.terms(index, total=5).values()).backward()
        blocks = [
            sum(p.grad.abs().sum().item() for p in block.parameters() if p.grad is not None)
            for block in tried.student.sites.blocks
        ]
        assert all(gradient > 0 for gradient in blocks[:newest_layer])
        assert blocks[newest_layer:] == [0.0] * (4 - newest_layer)


def test_an_even_budget_divides_the_stage_between_the_layers_and_the_prediction():
    phases = newest(SID(), layers=6, total=700)
    assert changes(phases) == [100, 200, 300, 400, 500, 600]
    assert phases[::100] == [1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize(
    ("layers", "total", "expected"),
    [(2, 10, [4, 7]), (5, 14, [3, 5, 7, 10, 12]), (6, 7, [1, 2, 3, 4, 5, 6]), (3, 2, [1])],
)
def test_uneven_parts_end_with_the_first_step_that_is_due(layers, total, expected):
    phases = newest(SID(), layers, total)
    assert changes(phases) == expected
    due = [1 + index * (layers + 1) // total for index in range(total)]
    assert phases == [layer if layer <= layers else 0 for layer in due]


def test_a_budget_in_steps_is_that_of_every_layer():
    assert changes(newest(SID(SID.Config(budget=5)), layers=3, total=100)) == [5, 10, 15]


def test_a_step_that_is_begun_again_unlocks_nothing():
    method, often = SID(SID.Config(budget=3)), SID(SID.Config(budget=3))
    steps = [0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7]
    once = newest(method, 3, 100, range(8))
    assert newest(often, 3, 100, steps) == [once[index] for index in steps]
    newest(often, 3, 1, [0])
    assert newest(often, 3, 100, [8]) == newest(method, 3, 100, [8])


@pytest.mark.parametrize(
    ("options", "steps", "said"),
    [
        ({"budget": 5}, 10, ["sid learns 2 layers for 5 steps each, and the stage has 10"]),
        ({"budget": 5}, 11, []),
        ({"budget": 5, "threshold": 0.1}, 10, []),
        ({}, 2, []),
    ],
)
def test_a_stage_without_a_step_for_the_predictions_says_so(options, steps, said):
    method, lines = SID(SID.Config(**options)), []
    method.models = Models(info("student", 2), info("teacher", 4))
    method.on_stage_start(SimpleNamespace(total_steps=steps, say=lines.append))
    assert [line.partition(":")[0] for line in lines] == said


def test_a_small_cosine_loss_unlocks_the_next_layer_and_starts_a_new_budget(sid):
    method = SID(SID.Config(threshold=0.5, budget=10))
    cosines = []
    for index in range(16):
        states = [UP if index < 4 else NEAR, UP, UP]
        cosines.append(sid(method, states, [RIGHT] * 3, index=index, total=100)["cosine"])
    # 0.4 is below the threshold in step 4; 0.4 + 1 never is, so that layer 2 spends its budget.
    assert cosines == pytest.approx([1.0] * 4 + [0.4] + [1.4] * 10 + [2.4])


def test_the_threshold_is_met_by_the_whole_step_not_by_a_micro_batch(trial):
    tried = trial("sid", layers=(2, 4), budget=1000)
    whole = tried.terms(0)["cosine"].item()
    rows = [tried.batch.inputs["input_ids"][i : i + 1] for i in range(4)]
    parts = [
        type(tried.batch)(
            {n: v[i : i + 1] for n, v in tried.batch.inputs.items()},
            tried.batch.labels[i : i + 1],
            tried.batch.rows[i : i + 1],
        )
        for i in range(len(rows))
    ]
    single = [tried.terms(0, batch=part)["cosine"].item() for part in parts]
    assert min(single) < whole < max(single)
    for threshold, unlocked in ((whole * 1.001, True), (whole * 0.999, False)):
        for order in (parts, parts[::-1]):
            split = trial("sid", layers=(2, 4), budget=1000, threshold=threshold)
            for part in order:
                split.terms(0, batch=part)
            assert ("hidden[2]|cls" in split.captures(1)[0]) is unlocked


def test_the_teacher_stops_after_the_newest_layer_and_states_are_reduced(invoke, settings):
    done = invoke("explain", "sid", *settings)
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert any("teacher: up to block 2 of 4" in line for line in lines)
    assert lines.count("hidden[2]|cls [16 x 32] 2.0 KiB for sid") == 1
    assert lines.count("hidden[1]|cls [16 x 32] 2.0 KiB for sid") == 1
    assert not [line for line in lines if line.startswith("logits")]


@pytest.mark.exhaustive
def test_what_is_unlocked_and_measured_survives_a_resume(trial):
    first = trial("sid", layers=(3, 6)).terms(0)["cosine"].item()

    def start():
        return trial("sid", layers=(3, 6), threshold=1.1 * first, budget=4)

    straight, state, sizes = start(), None, []
    for index in range(12):
        expected = straight.terms(index, total=12)
        restarted = start()
        if state is not None:
            restarted.method.load_state_dict(state)
        assert restarted.terms(index, total=12) == expected
        sizes.append(len(straight.captures(index, total=12)[0]))
        state = json.loads(json.dumps(restarted.method.state_dict()))
    # Layer 2 after one step, layers below the threshold no more: 3 and the prediction by budget.
    assert sizes == [2] + [4] * 4 + [6] * 4 + [1] * 3


@pytest.mark.exhaustive
def test_a_run_that_died_goes_on_with_what_was_unlocked(interrupted, settings):
    given = ["--method", "sid", *settings, "--set", "sid.threshold=0.9"]
    whole, broken = interrupted(*given, after=1)
    assert whole[0]["loss/sid.cosine"] < 0.9  # what the first step after the resume depends on
    assert broken == whole
    assert ["loss/sid.soft" in step for step in whole] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            info("student", 2, heads=2),
            "2 attention heads and the teacher 'base' 4. Set student.heads=4",
        ),
        (info("student", 2, width=16), "hidden size 16 and the teacher 'base' 32"),
        (info("student", 8), "student has 8 blocks and the teacher 4"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(student, message):
    with pytest.raises(MethodError, match=message):
        SID().check(Models(student, info("base", 4)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "progressive", "budget": 1},
        {"threshold": 100.0},
        {"budget": 1, "layers": "last"},
        {"layers": [[2, 3]], "threshold": 0.1},
    ],
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(SID, options, kinds)


@pytest.mark.exhaustive
def test_the_recipe_runs_through_all_phases(invoke, settings, tmp_path):
    output = tmp_path / "run"
    given = [*settings[:2], *settings[4:], "--set", "training.log_every=1"]
    done = invoke("run", "--recipe", "sid", *given, "--output", output)
    assert done.code == 0, done.err
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in logged if "loss/total" in entry]
    assert ["loss/sid.soft" in entry for entry in steps] == [False] * 4 + [True] * 2
