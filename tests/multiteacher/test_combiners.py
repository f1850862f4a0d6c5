"""What every combiner must do, and what runs with two teachers do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.grids import first_of

from gkd_core.plugins import registry
from gkd_core.testing import check_combiner

COMBINERS = sorted(registry().combiners)
OTHER_OPTIONS = [
    ("uncertainty", {"share": 0.5, "supervision": "adjusted"}),
    ("uncertainty", {"adoption": "soft"}),
    ("average", {"weights": [1, 3]}),
    ("rl-kd", {"warmup": 0.0, "reward": "r3"}),
]
OPTIONS = first_of([*((name, {}) for name in COMBINERS), *OTHER_OPTIONS], 3)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: str(value))
def test_combiner_keeps_what_every_combiner_must(name, options):
    check_combiner(registry().combiners[name], options)


@pytest.fixture
def log(invoke, settings, tmp_path):
    """Losses by step of a run on the small task: `log("--method", "soft", ...)`."""
    count = 0

    def _log(*arguments):
        nonlocal count
        count += 1
        output = tmp_path / f"run-{count}"
        given = [*settings[4:], "--no-baseline", "--set", "training.log_every=1"]
        done = invoke("run", *given, *arguments, "--output", output)
        assert done.code == 0, done.err
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        return [
            {key.removeprefix("loss/"): v for key, v in line.items() if key.startswith("loss/")}
            for line in lines
            if "loss/total" in line
        ]

    return _log


def _named(folder, *names):
    return [text for name in names for text in ("--teacher", f"{name}={folder / name.rstrip('2')}")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("method", "option"),
    first_of(
        [
            ("average(soft+pkd)", "average.weights=[0.2, 0.8]"),
            ("uncertainty(soft+pkd)", "uncertainty.adoption=soft"),
            ("uncertainty(soft+pkd)", "uncertainty.adoption=hard"),
            ("tmkd(soft+pkd)", "training.steps=1"),
            ("soft+pkd", "training.steps=1"),
        ],
    ),
)
def test_identical_teachers_are_as_good_as_one(log, calm, method, option):
    """`large2` is `large` by another name; all these weights add up to 1."""
    start = ["--student", calm / "large", "--set", "training.steps=1"]
    (one,) = log(*start, *_named(calm, "large"), "--method", "soft+pkd")
    given = ["--method", method, "--set", option]
    (both,) = log(*start, *_named(calm, "large", "large2"), *given)
    assert both["total"] == pytest.approx(one["total"], rel=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    first_of(["uncertainty", "mt-bert", "average", "tmkd"]),
)
def test_order_of_the_teachers_does_not_matter(log, calm, name):
    start = ["--student", calm / "small", "--method", f"{name}(soft)+hard"]
    start += ["--set", "training.eps=1e-4"]
    one = log(*start, *_named(calm, "large", "small"))
    other = log(*start, *_named(calm, "small", "large"))
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.exhaustive
def test_weights_before_and_in_parentheses_multiply(log, calm):
    start = ["--student", calm / "small", *_named(calm, "large", "small")]
    (first, *_) = log(*start, "--method", "0.5*mt-bert(2*soft+kd)+3*hard")
    parts = first["soft"] + 0.5 * (first["kd.soft"] + first["kd.hard"]) + 3 * first["hard"]
    assert first["total"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.exhaustive
def test_parentheses_of_average_are_what_a_bare_method_gets(log, calm):
    start = ["--student", calm / "small", *_named(calm, "large", "small")]
    bare, written = (log(*start, "--method", m) for m in ("soft+hard", "hard+average(soft)"))
    assert bare == written


@pytest.mark.exhaustive
def test_combiners_stand_beside_each_other(log, calm):
    start = ["--student", calm / "small", *_named(calm, "large", "small")]
    (first, *_) = log(*start, "--method", "mt-bert(soft)+uncertainty(kd)")
    assert {"soft", "kd.soft", "kd.hard"} <= first.keys()


SELECTED = ["--method", "uncertainty(soft)+hard", "--set", "uncertainty.share=0.5"]
METHODS = {
    "rl-kd": "0.5*rl-kd(soft)+0.5*hard",
    "average": "average(soft)+hard",
    "dgkd": "dgkd(0.5*soft)+hard",
    "mt-bert": "mt-bert(soft)+hard",
    "tmkd": "tmkd(0.5*soft+0.5*hard)",
    "uncertainty": "uncertainty(soft)+hard",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    first_of(METHODS),
)
def test_resumed_run_ends_bit_equal(invoke, two, tmp_path, dies_before, name):
    arguments = [*two, "--method", METHODS[name], "--set", "training.checkpoint_every=2"]
    assert invoke("run", *arguments, "--output", tmp_path / "whole").code == 0
    with dies_before(5):
        assert invoke("run", *arguments, "--output", tmp_path / "parts").code != 0
    again = invoke("run", "--output", tmp_path / "parts", "--resume")
    assert again.code == 0, again.err
    whole, parts = (
        load_file(tmp_path / run / "student" / "model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(weight, parts[key]) for key, weight in whole.items())
    assert not [key for key in whole if "heads" in key or "policies" in key]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("mt-bert(hard)", "hard reads no teacher, so mt-bert has nothing to combine for it"),
        ("mt-bert+soft", "'mt-bert' combines several teachers; it is not a method by itself"),
        ("soft(pkd)", "'soft' is a method and does not combine teachers"),
        ("mt-brt(soft)", "unknown combiner 'mt-brt'. Did you mean 'mt-bert'?"),
        ("average(sfot)", "unknown method 'sfot'. Did you mean 'soft'?"),
    ],
)
def test_refusals_name_both_sides(invoke, two, method, said):
    done = invoke("run", *two, "--method", method)
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_refusal_names_the_options_given(invoke, two):
    done = invoke("run", *two, "--method", "average(soft)", "--set", "average.weights=[1]")
    assert done.code == 2
    assert "average has 1 weights for 2 teachers" in done.err
    assert "average.weights = [1.0] (--set)" in " ".join(done.err.split())


def test_choice_among_one_teacher_is_refused_if_there_is_nothing_else_to_choose(
    invoke, log, pair, settings
):
    done = invoke("run", *settings, "--method", "uncertainty(soft)")
    assert done.code == 2
    assert "uncertainty selects among teachers, but there is only 1" in done.err
    assert log("--teacher", pair / "large", "--student-layers", 2, *SELECTED)


@pytest.mark.exhaustive
def test_a_student_without_an_idea_learns_features_alone(log, calm):
    """Its classifier is 0, so that U is 1 for every sample."""
    path = calm / "large" / "model.safetensors"
    weights = load_file(path)
    weights |= {name: 0 * weights[name] for name in ("classifier.weight", "classifier.bias")}
    shutil.copytree(calm / "large", calm / "blank")
    save_file(weights, calm / "blank" / path.name, {"format": "pt"})
    start = ["--student", calm / "blank", *_named(calm, "large"), "--set", "training.steps=1"]
    (fixed,) = log(*start, "--method", "soft+pkd")
    adjust = ["--set", "uncertainty.supervision=adjusted"]
    (found,) = log(*start, "--method", "uncertainty(soft+pkd)", *adjust)
    assert found["pkd"] == pytest.approx(fixed["pkd"], rel=1e-4)
    assert fixed["soft"] > 100 * abs(found["soft"])


def test_explanation_shows_what_is_combined_and_what_a_combiner_reads(invoke, two):
    done = invoke("explain", "2*mt-bert(0.5*soft)+pkd", *two[:6], *two[8:])
    assert done.code == 2  # pkd cannot compare widths 32 and 16
    done = invoke("explain", "2*mt-bert(0.5*soft)+hard", *two)
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    assert "method 2 * 0.5 x soft" in shown
    assert "combiner mt-bert of the teachers of soft, C. Wu et al. 2021" in shown
    assert "pass large: up to the logits" in shown
    assert "for mt-bert, soft" in shown


def test_options_of_a_combiner_that_is_not_used_are_pointed_out(invoke, two):
    done = invoke("explain", "soft", *two, "--set", "rl-kd.reward=r2")
    assert "[rl-kd] is set (--set), but no stage uses rl-kd" in done.err
    assert "average" not in done.err


def test_command_methods_lists_combiners_and_shows_one_with_its_options(invoke):
    listed = invoke("methods").out
    assert "combiners of several teachers" in listed
    assert all(f"  {name} " in listed for name in COMBINERS)
    shown = invoke("methods", "rl-kd").out
    assert "--method 'rl-kd(soft)+hard'" in shown
    assert "rl-kd.baseline = 0.9" in shown
