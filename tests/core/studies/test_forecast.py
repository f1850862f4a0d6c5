"""What `gkd study plan` counts: what is left, and what stays on the disk."""

from __future__ import annotations

import pytest

from gkd_core.studies.cell import Cell
from gkd_core.studies.cost import Cost
from gkd_core.studies.forecast import GroupForecast, disk, trials_left
from gkd_core.studies.study_config import parse_study
from gkd_core.studies.study_folder import StudyFolder


def group(cells, task, student, trials=0):
    cost = Cost(1.0, {}, memory=1, disk=10, student=student)
    return GroupForecast("", "", cells, task, trials, cost)


@pytest.mark.parametrize(
    ("keep", "students"), [("all", 5 * 100 + 2 * 300 + 200), ("best", 300 + 200), ("none", 0)]
)
def test_disk_has_the_students_that_are_kept_of_each_task(keep, students):
    groups = [
        group(2, "easy", 100, trials=3),
        group(2, "easy", 300),
        group(1, "difficult", 200),
        group(0, "finished", 400),
    ]
    assert disk([*groups, GroupForecast("", "", 4)], keep) == 8 * 10 + students


def test_trials_that_are_over_are_not_to_come(tmp_path):
    config = parse_study({"axes": {"method": ["kd"]}, "tune": {"lr_factors": [0.5, 1, 3]}}, "test")
    trials = [
        Cell(f"trial{factor}", {"method": "kd"}, 1000, "t", "tuning", "", factor, 0.25)
        for factor in (0.5, 1.0, 3.0)
    ]
    folder = StudyFolder(tmp_path, config, trials)
    assert trials_left(config.tune, folder, []) == [0.25] * 3 + [0.5] * 2
    for cell in trials[:2]:
        directory = folder.run_directory(cell)
        directory.mkdir(parents=True)
        for name in ("results.json", "report.html"):
            (directory / name).write_text("")
    assert trials_left(config.tune, folder, trials) == [0.25] + [0.5] * 2
    settled = [*trials, Cell("reported", {"method": "kd"}, 1, "t")]
    assert not trials_left(config.tune, folder, settled)
    assert not trials_left(None, folder, [])
