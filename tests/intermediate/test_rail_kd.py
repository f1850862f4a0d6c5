"""RAIL-KD: its distances by hand, and which teacher layers are drawn when."""

import json
from itertools import combinations

import pytest
import torch
from pydantic import ValidationError

from gkd_core.api import MethodError, ModelInfo, Models
from gkd_core.config.resolve import resolve
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.testing import check_method
from gkd_methods_intermediate.rail_kd import RAILKD


def info(name, layers, width=32):
    return ModelInfo(name, "bert", layers, width, 4, 4, width // 4, 64, 100, 2, 64)


def vector(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.fixture
def rail(terms):
    """The loss of mean states by layer, with identities as projections."""

    def _rail(student, teacher, **options):
        method = RAILKD(RAILKD.Config(**options))
        count = 1 if method.config.variant == "concatenated" else len(student)
        width = student[0].shape[-1] * len(student) // count
        modules = {}
        for name in (f"{side} {n + 1}" for side in ("student", "teacher") for n in range(count)):
            modules[name] = torch.nn.Linear(width, width, bias=False).double()
            torch.nn.init.eye_(modules[name].weight)
        found = terms(
            method,
            {f"hidden[{layer}]|mean": state for layer, state in enumerate(student, 1)},
            {f"hidden[{2 * layer}]|mean": state for layer, state in enumerate(teacher, 1)},
            modules=modules,
            layers=(len(student) + 1, 8),
        )
        return found["rail-kd"].item()

    return _rail


def test_the_distance_is_that_of_the_directions(rail):
    # (3/5, 4/5) and (4/5, 3/5) differ by 1/5 in both places.
    assert rail([vector(3, 4)], [vector(4, 3)]) == pytest.approx(0.08, abs=1e-12)
    assert rail([vector(30, 40)], [vector(0.4, 0.3)]) == pytest.approx(0.08, abs=1e-12)
    assert rail([vector(3, 4)], [vector(6, 8)]) == pytest.approx(0, abs=1e-12)
    assert rail([vector(3, 4)], [vector(-3, -4)]) == pytest.approx(4, abs=1e-12)


def test_layers_are_added_each_with_its_weight(rail):
    student, teacher = [vector(3, 4), vector(1, 0)], [vector(4, 3), vector(0, 2)]
    assert rail(student, teacher) == pytest.approx(0.08 + 2, abs=1e-12)
    weighed = rail(student, teacher, layer_weights=(0.5, 3))
    assert weighed == pytest.approx(0.5 * 0.08 + 3 * 2, abs=1e-12)


def test_concatenated_layers_have_one_distance(rail):
    student, teacher = [vector(3, 0), vector(0, 4)], [vector(4, 0), vector(0, 3)]
    # (3, 0, 0, 4) / 5 and (4, 0, 0, 3) / 5; layer by layer the directions are equal.
    assert rail(student, teacher, variant="concatenated") == pytest.approx(0.08, abs=1e-12)
    assert rail(student, teacher) == pytest.approx(0, abs=1e-12)


def test_samples_are_averaged(rail):
    student, teacher = vector(3, 4).expand(5, 2), vector(4, 3).expand(5, 2)
    assert rail([student], [teacher]) == pytest.approx(0.08, abs=1e-12)


def drawn(trial, **where):
    """Numbers of the teacher layers read."""
    return [int(path.split("[")[1].split("]")[0]) for path in trial.captures(**where)[1]]


def test_an_epoch_has_its_layers_and_another_epoch_others(trial):
    tried = trial("rail-kd", layers=(4, 12))
    epochs = [drawn(tried, epoch=epoch) for epoch in range(40)]
    for epoch, layers in enumerate(epochs):
        assert len(set(layers)) == 3
        assert set(layers) <= set(range(1, 12))
        assert all(drawn(tried, epoch=epoch, index=index) == layers for index in (0, 7, 9))
    assert set(range(1, 12)) == {layer for layers in epochs for layer in layers}
    assert len({tuple(sorted(layers)) for layers in epochs}) > 20


def test_every_choice_of_layers_is_drawn_equally_often(trial):
    tried = trial("rail-kd", layers=(3, 5))
    choices = [tuple(sorted(drawn(tried, epoch=epoch))) for epoch in range(600)]
    counts = [choices.count(pair) for pair in combinations(range(1, 5), 2)]
    assert sum(counts) == 600
    # 100 expected, with a standard deviation of 9.
    assert all(64 < count < 136 for count in counts)


def test_layers_may_be_drawn_every_few_steps(trial):
    tried = trial("rail-kd", layers=(3, 12), draw_every=4)
    layers = [drawn(tried, index=index, epoch=index % 3) for index in range(40)]
    assert all(layers[index] == layers[4 * (index // 4)] for index in range(40))
    assert len({tuple(choice) for choice in layers}) > 5


def test_what_is_drawn_depends_on_seed_and_epoch_alone(trial):
    """Not on how often it was asked, as for the evaluation after a step, nor on a resume."""
    straight, again = trial("rail-kd", layers=(4, 12)), trial("rail-kd", layers=(4, 12))
    expected = [drawn(straight, epoch=epoch) for epoch in range(6)]
    assert [drawn(again, epoch=epoch) for epoch in (5, 0, 5, 3)] == [
        expected[epoch] for epoch in (5, 0, 5, 3)
    ]
    resumed = trial("rail-kd", layers=(4, 12))
    resumed.member.generator.manual_seed(99)
    assert [drawn(resumed, epoch=epoch) for epoch in range(6)] != expected
    resumed.member.generator.set_state(straight.member.generator.get_state())
    assert [drawn(resumed, epoch=epoch) for epoch in range(6)] == expected


def test_drawn_layers_are_compared_in_rising_order(terms):
    method = RAILKD(RAILKD.Config(projection_size=2))
    states = {3: vector(1, 0), 5: vector(0, 1), 11: vector(-1, 0)}
    modules = {
        f"{side} {n}": torch.nn.Linear(2, 2, bias=False).double()
        for side in ("student", "teacher")
        for n in (1, 2, 3)
    }
    for module in modules.values():
        torch.nn.init.eye_(module.weight)
    found = terms(
        method,
        {f"hidden[{n}]|mean": state for n, state in enumerate(states.values(), 1)},
        {f"hidden[{layer}]|mean": states[layer] for layer in (11, 3, 5)},
        modules=modules,
        layers=(4, 12),
    )
    assert found["rail-kd"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("variant", ["layer-wise", "concatenated"])
def test_both_projections_learn_and_the_last_block_and_the_teacher_do_not(trial, variant):
    tried = trial("rail-kd", layers=(3, 6), variant=variant)
    tried.terms()["rail-kd"].backward()
    for module in tried.method.modules.values():
        assert module.weight.grad.abs().sum() > 0
    *lower, last = tried.student.sites.blocks
    assert all(p.grad is None or not p.grad.any() for p in last.parameters())
    assert all(any(p.grad is not None for p in block.parameters()) for block in lower)
    assert all(p.grad is None for p in tried.teacher.model.parameters())


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (
            "layer-wise",
            {f"{s} {n}": (128, w) for n in (1, 2) for s, w in (("student", 32), ("teacher", 48))},
        ),
        ("concatenated", {"student 1": (128, 64), "teacher 1": (128, 96)}),
    ],
)
def test_projections_belong_to_places_not_to_layers(variant, expected):
    method = RAILKD(RAILKD.Config(variant=variant))
    for teacher_layers in (3, 24):
        modules = method.build_modules(Models(info("student", 3), info("base", teacher_layers, 48)))
        assert {name: tuple(m.weight.shape) for name, m in modules.items()} == expected
        assert all(module.bias is None for module in modules.values())


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (1, {}, "no layer to match"),
        (8, {}, "draws 7 teacher layers, .* 'base' has 3 below its last"),
        (3, {"layer_weights": (1, 1, 1)}, "has 3 weights, but the student has 2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused(student, options, message):
    method = RAILKD(RAILKD.Config(**options))
    with pytest.raises(MethodError, match=message):
        method.check(Models(info("student", student), info("base", 4)))
    RAILKD().check(Models(info("student", 4, width=16), info("base", 4)))


def test_weights_of_layers_have_no_meaning_for_all_layers_in_one():
    with pytest.raises(ValidationError, match="does not apply to variant 'concatenated'"):
        RAILKD.Config(variant="concatenated", layer_weights=(1,))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "concatenated"},
        {"layer_weights": [2.5], "draw_every": 1},
        {"projection_size": 3},
    ],
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(RAILKD, options, kinds)


def test_only_means_are_kept(invoke, settings):
    done = invoke("explain", "rail-kd", *settings)
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    kept = [line for line in lines if line.endswith("for rail-kd")]
    assert len(kept) == 2
    assert all("]|mean [16 x 32] 2.0 KiB" in line for line in kept)


@pytest.mark.exhaustive
def test_a_run_that_died_draws_the_same_layers(interrupted, settings):
    given = ["--method", "rail-kd+soft", *settings, "--set", "training.epochs=3"]
    whole, broken = interrupted(*given, after=8)
    assert len(whole) == 18
    assert broken == whole


def test_the_recipe_weighs_labels_predictions_and_layers_alike(world):
    given = [f"task.train={world / 'train.jsonl'}", f"teacher.model={world / 'teacher'}"]
    resolved = resolve(registry(), recipe="rail-kd", settings=[*given, "task.max_length=32"])
    (stage,) = prepare_run(resolved, registry())
    weights = {member.name: member.weight.at(0, 1) for member in stage.expression.members}
    assert weights == dict.fromkeys(("hard", "soft", "rail-kd"), 0.3333)
    assert stage.start == "blocks 2, 4 of teacher"


def test_the_recipe_runs(invoke, settings, tmp_path):
    given = [*settings[:2], *settings[4:], "--set", "training.steps=2"]
    done = invoke("run", "--recipe", "rail-kd", *given, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
