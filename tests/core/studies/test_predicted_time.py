"""The time that cells were predicted to take, beside theirs."""

import pytest

from gkd_core.cli.study_progress import status_notes
from gkd_core.plugins import registry
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.predicted_time import PredictedTime, save_forecast
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.studies.study_report import StudyReport
from gkd_core.studies.study_results import StudyResults


@pytest.fixture
def folder(write_study, tmp_path):
    """A study of two methods, whose cells took 30 s, 50 s and, in the last of two attempts, 1 s."""
    writer = write_study(tmp_path / "study", {"axes": {"method": ["kd", "hard"], "seed": [1, 2]}})
    for method, seed, attempt in (
        ("kd", 1, Attempt(1, 0, seconds=30.0)),
        ("hard", 1, Attempt(1, 0, seconds=50.0)),
        ("hard", 2, Attempt(2, 0, seconds=1.0)),
    ):
        cell = writer.add(0.8, method=method, seed=seed)
        attempt.save(writer.folder.attempt_file(cell))
    writer.add(0.8, method="kd", seed=2, state="waiting")
    return StudyFolder.read(writer.close())


def test_times_of_finished_cells_are_compared_with_what_was_predicted(folder):
    assert PredictedTime.of(folder) is None
    kd, hard = (cell.group for cell in folder.cells[:2])
    save_forecast(folder, [(kd, {1.0: 20.0, 0.25: 5.0}), (hard, {1.0: 9.0})])
    save_forecast(folder, [(hard, {1.0: 44.0, 0.25: 10.0})])  # a plan of one method
    found = PredictedTime.of(folder)
    assert found == PredictedTime(2, 64.0, 80.0)
    said = "time of 2 cells, one after the other: 0:01:20; predicted: 0:01:04 (factor 1.25)"
    assert list(status_notes(folder))[-1] == said
    report = StudyReport.of(StudyResults.read(folder, registry()))
    assert said in report.notes()
    assert report.to_json()["time"] == {"cells": 2, "predicted": 64.0, "measured": 80.0}
