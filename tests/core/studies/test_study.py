"""The cells of studies on the tiny world; none of them is run."""

import tomllib

import pytest

from gkd_core.errors import ConfigError
from gkd_core.plugins import registry
from gkd_core.studies.cell import CellState
from gkd_core.studies.study import Study
from gkd_core.studies.study_config import parse_study
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.studies.tuning import better_half


@pytest.fixture
def study(world, tmp_path):
    settings = {
        "teacher": str(world / "teacher"),
        "task": {"train": str(world / "train.jsonl"), "max_length": 16},
        "training": {"epochs": 2, "batch_size": 16},
        "student": {"layers": 2},
    }

    def _study(**tree):
        tree = {"settings": settings, "axes": {"method": ["kd", "hard"]}} | tree
        return Study(tmp_path / "study", parse_study(tree, "test"), registry())

    return _study


def test_new_seed_adds_cells_and_keeps_the_others(study):
    before = study(axes={"method": ["kd", "hard"], "seed": [1, 2]}).open()
    after = study(axes={"method": ["kd", "hard"], "seed": [2, 3]}).open()
    names = [{cell.name for cell in folder.cells} for folder in (before, after)]
    assert [len(each) for each in names] == [4, 4]
    assert len(names[0] & names[1]) == 2
    assert {cell.name for cell in after.former} == names[0] - names[1]
    assert all(after.config_file(name).exists() for name in names[0] | names[1])


def test_name_is_that_of_content_and_of_what_differs_from_the_defaults(study, world, tmp_path):
    def names(settings=None):
        made = study(axes={"method": ["kd"]})
        both = made.config.settings | (settings or {})
        config = made.config.model_copy(update={"settings": both})
        return [cell.name for cell in Study(tmp_path / "x", config, registry()).open().cells]

    assert names() == names({"training.lr": 5e-5}) == names({"output.tensorboard": False})
    assert names() == names({"teacher.keep": "disk"}) == names({"teacher.keep": "none"})
    assert names() != names({"training.lr": 1e-4})
    moved = tmp_path / "train.jsonl"
    moved.write_bytes((world / "train.jsonl").read_bytes())
    assert names() == names({"task.train": str(moved)})
    changed = tmp_path / "changed" / "train.jsonl"
    changed.parent.mkdir()
    changed.write_text(moved.read_text().replace("good", "bad"))
    assert names() != names({"task.train": str(changed)})


def test_cells_share_what_a_teacher_answers_unless_the_study_says_how(study):
    def kept(**tree):
        folder = study(**tree).open()
        configs = [tomllib.loads(folder.config_file(c.name).read_text()) for c in folder.cells]
        return [teacher["keep"] for config in configs for teacher in config["teachers"]]

    assert kept() == ["share", "share"]
    own = {"method": {"kd": {"method": "kd", "teacher.keep": "auto"}}}
    assert kept(values=own) == ["auto", "share"]


def test_what_gkd_refuses_is_dropped_with_its_message(study):
    folder = study(axes={"method": ["kd", "pd"], "student.layers": [2, 9]}).open()
    states = {tuple(cell.axes.values()): folder.state(cell) for cell in folder.cells}
    assert states["kd", 2] is CellState.WAITING
    assert states["kd", 9] is CellState.DROPPED
    reasons = {cell.reason for cell in folder.cells if cell.axes["student.layers"] == 9}
    assert any("9" in reason for reason in reasons)


def test_task_adjusts_the_recipes_of_a_study_unless_it_keeps_the_papers_values(study, monkeypatch):
    def adjustments(cls, recipe, stage, settings):
        return {"training": {"weight_decay": 0.5}} if recipe == "kd" else {}

    monkeypatch.setattr(registry().task("files"), "adjustments", classmethod(adjustments))
    folder = study(axes={"recipe": ["kd", "hard"], "paper_values": [False, True]}).open()
    decay = {
        (cell.axes["recipe"], cell.axes["paper_values"]): tomllib.loads(
            folder.config_file(cell.name).read_text()
        )["training"].get("weight_decay")
        for cell in folder.cells
    }
    assert decay["kd", False] == 0.5
    assert decay["kd", True] == decay["hard", True] != 0.5


def test_cells_that_cost_the_same_are_timed_once(study):
    axes = {
        "method": ["kd", "2*kd", "kd+hard", "hard+0.5*kd"],
        "student.init": ["spaced", "first"],
        "training.lr": [1e-4],
        "seed": [1, 2],
    }
    timed = study(axes=axes).open_timing().cells
    assert [cell.axes["method"] for cell in timed] == ["kd", "kd+hard"]
    assert {cell.axes["student.init"] for cell in timed} == {"spaced"}
    sizes = {"method": ["kd"], "student.layers": [1, 2], "training.batch_size": [8, 16]}
    assert len(study(axes=sizes).open_timing().cells) == 2 * 2


def test_study_without_a_possible_cell_is_refused(study):
    with pytest.raises(ConfigError, match=r"every cell of the study is dropped: .*nonesuch"):
        study(axes={"method": ["nonesuch"]}).open()


def test_students_of_equal_size_are_no_wider_than_the_teacher_whose_weights_they_take(study):
    axes = {"method": ["kd"], "student.layers": [2, 3]}
    folder = study(axes=axes, equal_size="student.layers").open()
    assert {cell.reason for cell in folder.cells} == {""}


def test_cells_that_another_command_lists_meanwhile_stay_listed(study, monkeypatch):
    def tuned():
        return study(axes={"method": ["kd"]}, tune={"lr_factors": [1, 2], "seed": 7})

    slow, fast, scored = tuned(), tuned(), []

    def score(folder, cell, registry):
        scored.append(cell)
        if len(scored) > 1:
            return 1.0
        fast.open()  # the trial ends just after `slow` has looked, and `fast` lists what follows
        return None

    monkeypatch.setattr("gkd_core.studies.study.score", score)
    folder = slow.open()
    assert {cell.role for cell in folder.cells} == {"tuning", "report"}
    assert [*StudyFolder.read(folder.path).cells] == folder.cells


def test_better_half_of_equals_is_the_smaller():
    assert better_half([0.3, 1, 3], {0.3: 0.5, 1: 0.0, 3: 0.5}) == [0.3, 3]
    assert better_half([1, 3], {1: -2.0, 3: -1.0}) == [3]


def test_rates_are_tuned_by_halving_before_cells_are_known(study, monkeypatch):
    tuned = study(
        axes={"method": ["kd"], "seed": [1, 2]}, tune={"lr_factors": [0.5, 1, 4], "seed": 7}
    )
    scores = {0.5: 0.1, 1: 0.2, 4: 0.3}
    over = set()

    def score(folder, cell, registry):
        return scores[cell.lr_factor] if cell.name in over else None

    monkeypatch.setattr("gkd_core.studies.study.score", score)
    first = tuned.open()
    assert [(c.lr_factor, c.share, c.role, c.seed) for c in first.cells] == [
        (factor, 0.25, "tuning", 7) for factor in (0.5, 1, 4)
    ]
    assert tuned.unknown(first) == 2
    over |= {cell.name for cell in first.cells}
    second = tuned.open()
    assert [(c.lr_factor, c.share) for c in second.cells[3:]] == [(4, 0.5), (1, 0.5)]
    over |= {cell.name for cell in second.cells}
    third = tuned.open()
    reported = [cell for cell in third.cells if cell.role == "report"]
    assert [(cell.seed, cell.lr_factor) for cell in reported] == [(1, 4), (2, 4)]
    assert tuned.unknown(third) == 0
    assert "lr = 0.0002 " in third.config_file(reported[0].name).read_text()
    # 96 rows less the validation rows, in batches of 16, twice: 12 steps, and a quarter of them.
    assert "steps = 3 " in third.config_file(first.cells[0].name).read_text()


def test_trials_leave_the_test_rows_alone_and_keep_their_names(study, monkeypatch):
    def opened(**tree):
        return study(axes={"method": ["kd"], "training.steps": [8, 4], "seed": [1]}, **tree)

    monkeypatch.setattr("gkd_core.studies.study.score", lambda *_: 0.5)
    folder = opened(tune={"lr_factors": [1, 2], "seed": 7}).open()
    limits = {c.role: _config(folder, c)["output"]["compare_on"] for c in folder.cells}
    assert limits == {"tuning": "validation", "report": "test"}

    # Half of 8 steps with seed 7 are the settings of a trial, and of a cell of the next study.
    trial = next(c for c in folder.cells if c.role == "tuning" and c.lr_factor == 1)
    again = {"settings": study().config.settings | {"output.compare_on": "validation"}}
    axes = {"method": ["kd"], "training.steps": [4], "seed": [7]}
    (same,) = (
        Study(folder.path.parent / "other", study(axes=axes, **again).config, registry())
        .open()
        .cells
    )
    assert same.name == trial.name
    (reported,) = study(axes=axes).open().cells
    assert reported.name != trial.name, "the run of a trial knows nothing of the test rows"
    assert [c.name for c in study(axes=axes).open().cells] == [reported.name]


def _config(folder, cell):
    return tomllib.loads(folder.config_file(cell.name).read_text())


def test_a_method_whose_rates_all_fail_is_shown_without_further_trials(study, monkeypatch):
    tuned = study(axes={"method": ["kd"], "seed": [1]}, tune={"lr_factors": [0.5, 1, 4]})
    monkeypatch.setattr("gkd_core.studies.study.score", lambda *_: float("-inf"))
    found = [(cell.role, cell.lr_factor) for cell in tuned.open().cells]
    assert found == [("tuning", 0.5), ("tuning", 1), ("tuning", 4), ("report", 0.5)]
