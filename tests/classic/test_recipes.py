"""Every shipped recipe resolves, says where it comes from, and runs the stages of its paper."""

import json
from itertools import pairwise

import pytest
from tests.grids import first_of

from gkd_core.plugins import registry

CLASSIC = {
    name
    for name, method in registry().methods.items()
    if registry().provider(name).name == "classic"
    and not (method.on_policy or method.aligns or method.other_prompts)
}
"""Methods of any task; others are in `test_written_recipes.py` and its neighbors."""
RECIPES = sorted(name for name in registry().recipes if name in CLASSIC)

STAGES = {
    "annealing-kd": [("annealing", "task", "annealing-kd"), ("labels", "task", "hard")],
    "continuation-kd": [("distil", "task", "continuation-kd")],
    "distilbert": [("pretrain", "text", "distilbert"), ("task", "task", "hard")],
    "dpkd": [("distil", "task", "dpkd")],
    "glmd": [
        ("pretrain", "text", "glmd"),
        ("task-intermediate", "text", "glmd"),
        ("task", "task", "glmd"),
    ],
    "hard": [("distil", "task", "hard")],
    "kd": [("distil", "task", "kd")],
    "mft": [("distil", "task", "mft")],
    "minilm": [("pretrain", "text", "minilm"), ("task", "task", "hard")],
    "minilmv2": [("pretrain", "text", "minilmv2"), ("task", "task", "hard")],
    "pd": [("pretrain", "text", "hard"), ("distil", "task", "pd")],
    "pkd": [("distil", "task", "0.5*hard+0.5*soft+pkd")],
    "soft": [("distil", "task", "soft")],
}
"""Name, what is learnt and the methods of each stage."""

TEXT = {"encoder": "masked-lm", "decoder": "causal-lm"}
"""What the stages on text learn, by the family of the teacher."""


def test_the_package_ships_a_recipe_for_each_of_its_methods():
    assert set(RECIPES) == CLASSIC == set(STAGES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is(draw, recipe):
    resolved, _ = draw(recipe)
    assert set(resolved.about) == {"title", "paper", "description"}
    assert not resolved.warnings


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_stages_of_its_paper(draw, recipe, family):
    _, specs = draw(recipe, family)
    kinds = {"text": TEXT[family], "task": "classification"}
    assert [(b.name, b.kind.name, str(b.expression)) for b in specs] == [
        (name, kinds[what], method) for name, what, method in STAGES[recipe]
    ]
    for before, spec in pairwise(specs):
        assert spec.follows is before


HALF = [recipe for recipe in RECIPES if recipe not in ("hard", "kd", "mft", "soft")]


@pytest.mark.parametrize("recipe", HALF)
def test_the_student_has_half_the_blocks(draw, recipe):
    _, specs = draw(recipe)
    assert [spec.student.layers for spec in specs] == [2] * len(specs)


@pytest.mark.parametrize(
    ("recipe", "start"),
    [
        ("annealing-kd", "blocks 2, 4 of teacher"),
        ("continuation-kd", "blocks 2, 4 of teacher"),
        ("distilbert", "blocks 2, 4 of teacher"),
        ("dpkd", "blocks 2, 4 of teacher"),
        ("mft", "blocks 1, 2, 3, 4 of teacher"),
        ("glmd", "random weights"),
        ("minilm", "random weights"),
        ("minilmv2", "random weights"),
        ("pd", "random weights"),
        ("pkd", "blocks 1, 2 of teacher"),
    ],
)
def test_the_student_starts_as_in_the_paper(draw, recipe, start):
    _, (first, *_) = draw(recipe)
    assert first.start == start


def test_pkd_is_the_objective_of_the_paper(draw):
    _, (stage,) = draw("pkd")
    weights = {member.name: member.weight.at(0, 1) for member in stage.expression.members}
    assert weights == {"hard": 0.5, "soft": 0.5, "pkd": 1}
    options = {member.name: member.methods[0].config for member in stage.members}
    assert options["soft"].temperature.at(0, 1) == 10
    assert (options["pkd"].beta.at(0, 1), options["pkd"].layers) == (100, "skip")
    assert stage.config.training.lr == 2e-5


def test_annealing_hands_on_its_best_student_after_two_epochs_at_each_temperature(draw):
    _, (annealing, labels) = draw("annealing-kd")
    (member,) = annealing.members
    assert annealing.config.training.epochs == 2 * member.methods[0].config.max_temperature == 14
    assert labels.config.training.epochs == 4
    assert labels.start == "the best student of stage annealing"


def test_continuation_has_the_epochs_its_schedule_is_made_for(draw):
    _, (stage,) = draw("continuation-kd")
    options, epochs = stage.members[0].methods[0].config, stage.config.training.epochs
    assert epochs == 30
    assert options.psi.at(10, epochs) == pytest.approx(10 / 40)
    assert round(options.labels_from * epochs) == 20


def test_a_language_model_serves_the_whole_recipe_that_reads_no_other_teacher(world, invoke):
    """The command that the documentation names."""
    done = invoke(
        *("explain", "--recipe", "distilbert", "--teacher", world / "lm-teacher"),
        *("--data", world / "train.jsonl", "--set", "task.max_length=32"),
    )
    assert done.code == 0, done.err
    assert "masked-lm on" in done.out
    assert "starts from the best student of stage pretrain, with a fresh head" in done.out


ON_TEXT = [recipe for recipe in RECIPES if any(what == "text" for _, what, _ in STAGES[recipe])]


@pytest.mark.parametrize(
    ("recipe", "family"),
    first_of(
        [
            (ON_TEXT[0], "decoder"),
            *((recipe, "encoder") for recipe in RECIPES),
            *((other, "decoder") for other in ON_TEXT[1:]),
        ],
        5,
    ),
)
def test_a_recipe_runs_from_the_command_line(invoke, settings, teachers, tmp_path, recipe, family):
    given = settings[4:]  # without the teacher and the depth, which the recipe says
    given += [text for setting in teachers(recipe, family) for text in ("--set", setting)]
    output = tmp_path / "run"
    done = invoke("run", "--recipe", recipe, *given, "--output", output)
    assert done.code == 0, done.err
    rows = json.loads((output / "results.json").read_text())["rows"]
    methods = " then ".join(method for _, _, method in STAGES[recipe])
    assert rows[-1]["name"] == f"student, {methods}"
    assert len(list(output.glob("stages/*/done.json"))) == len(STAGES[recipe])
