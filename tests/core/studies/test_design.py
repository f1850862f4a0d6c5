from gkd_core.studies.design import axis_points
from gkd_core.studies.study_config import parse_study

AXES = {"method": ["kd", "hard"], "student.layers": [1, 2, 3], "seed": [1, 2]}


def _made(installed=None, **tree):
    return axis_points(parse_study(tree, "test"), installed or {})


def _axes(found):
    return list(dict.fromkeys(tuple(each.axes.values()) for each in found))


def test_grid_has_every_combination_for_every_seed_and_task():
    found = _made(axes=AXES | {"task": ["a", "b"]})
    assert len(found) == 2 * 3 * 2 * 2
    assert _axes(found) == [(m, n) for m in ("kd", "hard") for n in (1, 2, 3)]
    assert {(each.task, each.seed) for each in found} == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}


def test_one_factor_at_a_time_changes_one_axis_of_the_baseline():
    found = _made(axes=AXES, design="one-factor-at-a-time", baseline={"student.layers": 2})
    assert _axes(found) == [("kd", 2), ("hard", 2), ("kd", 1), ("kd", 3)]


def test_list_has_what_it_lists():
    cells = [{"method": "kd", "training.lr": 1e-3}, {"method": "hard"}]
    found = _made(design="list", cells=cells, axes={"seed": [5, 6]})
    assert [(dict(each.axes), each.seed) for each in found] == [
        (cell, seed) for cell in cells for seed in (5, 6)
    ]


def test_constraint_drops_with_its_reason():
    constraints = [{"when": {"method": "kd", "student.layers": [2, 3]}, "reason": "too deep"}]
    found = _made(axes=AXES, constraints=constraints)
    dropped = {tuple(each.axes.values()) for each in found if each.reason}
    assert dropped == {("kd", 2), ("kd", 3)}
    assert {each.reason for each in found} == {"", "too deep"}


def test_star_stands_for_what_is_installed():
    installed = {"method": ["hard", "kd", "pkd"]}
    found = _made(installed, axes={"method": ["pkd+soft", "hard", "*"]})
    assert _axes(found) == [("pkd+soft",), ("hard",), ("kd",), ("pkd",)]


def test_later_axis_wins_over_an_earlier_one_and_the_settings():
    config = parse_study(
        {
            "settings": {"seed": 9, "training": {"epochs": 2, "lr": 1.0}},
            "axes": {"size": ["small"], "training.lr": [0.1]},
            "values": {"size": {"small": {"training.lr": 0.5, "student.layers": 1}}},
        },
        "test",
    )
    (found,) = axis_points(config, {})
    assert found.settings(config) == {
        "training.epochs": (2, "[settings]"),
        "student.layers": (1, "axis size"),
        "training.lr": (0.1, "axis training.lr"),
        "seed": (1, "axis seed"),
    }


def test_group_leaves_the_seed_out():
    one, other, third, _ = _made(axes={"method": ["kd", "hard"], "seed": [1, 2]})
    assert one.group == other.group == one.with_seed(7).group != third.group
