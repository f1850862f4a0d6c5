"""What a task changes in a recipe: its precedence, what is said of it, and how to do without."""

import pytest

from gkd_core.config.render import to_toml
from gkd_core.config.resolve import resolve
from gkd_core.data.embedded import Embedded
from gkd_core.plugins import registry


def adjustments(task, recipe, stage, settings):
    """Return what a task changes in the recipe `pkd`."""
    assert (task, recipe) == ("embedded", "pkd")
    assert settings["training"]["lr"] in (2e-5, 0.5)
    return {"training": {"lr": 3e-4, "epochs": 50, "batch_size": 32}}


def adjusted(*settings, recipe="pkd", **sources):
    return resolve(
        registry(),
        recipe=recipe,
        settings=settings,
        task_adjustments=sources.pop("task_adjustments", adjustments),
        **sources,
    )


def embedded(task, recipe, stage, settings):
    return Embedded.adjustments(recipe, stage, settings)


def test_a_task_wins_over_the_recipe_and_the_user_over_the_task(tmp_path):
    resolved = adjusted()
    training = resolved.stages[0].config.training
    assert (training.lr, training.epochs) == (3e-4, 50)
    assert resolved.origin("training.lr") == "task embedded for recipe pkd"
    assert resolved.origin("training.batch_size") == "recipe pkd"  # it has the same value
    assert "lr = 0.0003  # task embedded for recipe pkd" in to_toml(resolved)
    file = tmp_path / "own.toml"
    file.write_text("training.epochs = 7\n")
    resolved = adjusted("training.lr=0.5", files=[file])
    assert (resolved.config.training.lr, resolved.config.training.epochs) == (0.5, 7)
    assert resolved.stages[0].notes == ()


def test_what_a_task_changes_is_said():
    (note,) = adjusted().stages[0].notes
    assert note == (
        "training.lr = 0.0003 instead of 2e-05, training.epochs = 50 instead of 4: "
        "task embedded for recipe pkd; the recipe's own with --paper-values"
    )


@pytest.mark.parametrize(
    "sources",
    [
        {"settings": ["paper_values=true"]},
        {"flags": {"paper_values": (True, "--paper-values")}},
    ],
)
def test_the_values_of_the_paper_are_one_flag_away(sources):
    resolved = resolve(registry(), recipe="pkd", task_adjustments=adjustments, **sources)
    assert (resolved.config.training.lr, resolved.config.training.epochs) == (2e-5, 4)
    assert resolved.stages[0].notes == ()


def test_without_a_recipe_nothing_is_adjusted(tmp_path):
    stored = tmp_path / "config.toml"
    stored.write_text(to_toml(adjusted()))
    assert adjusted(recipe=None, files=[stored]).origin("training.lr").startswith(str(stored))


def test_each_stage_is_adjusted_by_itself():
    resolved = adjusted(recipe="lrc-bert", task_adjustments=embedded)
    text, *labeled = resolved.stages
    assert (text.config.training.lr, text.config.training.epochs) == (1e-3, 12)
    assert [stage.config.training.lr for stage in labeled] == [3e-3, 3e-3]
    assert [resolved.links[stage.name].start for stage in labeled] == ["pretrain", "contrast"]


def test_the_student_of_later_stages_is_that_of_the_first_if_a_task_changes_its_start():
    def start(task, recipe, stage, settings):
        return {"student": {"init": "spaced"}} if settings["student"]["init"] == "random" else {}

    resolved = adjusted(recipe="minilm", task_adjustments=start)
    assert [stage.config.student.init for stage in resolved.stages] == ["spaced", "spaced"]
    assert resolved.links["task"].start == "pretrain"
    named = adjusted("student.init=random", recipe="minilm", task_adjustments=start)
    assert [stage.config.student.init for stage in named.stages] == ["random", "random"]


@pytest.mark.parametrize("recipe", sorted(registry().recipes))
def test_a_recipe_trains_on_the_embedded_task_as_that_task_does(recipe):
    """What recipes reach so is measured by the exhaustive test of the embedded task."""
    resolved = adjusted(
        recipe=recipe,
        task_defaults=lambda name, kind: Embedded.defaults(kind),
        task_adjustments=embedded,
    )
    for stage in resolved.stages:
        config = stage.config
        own = dict(Embedded.defaults(config.task.kind)["training"])
        if config.student.init == "random":
            own |= {"lr": 3e-3} if config.task.kind is None else {"epochs": 12}
        if stage.name == "policy":
            own |= {"lr": own["lr"] / 10}
        for name, value in own.items():
            assert getattr(config.training, name) == value
        for writes in filter(None, (config.rollout, config.writing)):
            assert writes.prompt_tokens + writes.max_new_tokens == config.task.max_length
