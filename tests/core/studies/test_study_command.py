"""`gkd study` from the command line; cells run in this process, which costs no import of torch."""

import csv
import json
import os
import threading
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gkd_core import lease
from gkd_core.contract.launcher import JobEvent
from gkd_core.evaluation.predictions import Predictions
from gkd_core.plugins import registry
from gkd_core.studies.predicted_time import PredictedTime
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.training.manifest import Manifest

STUDY = """
title = "Two methods"
baseline = {{ method = "hard" }}

[axes]
method = ["kd", "hard"]

[settings]
teacher = "{world}/teacher"
student.layers = 2
training = {{ steps = 4, batch_size = 16, lr = 1e-3 }}
output.tensorboard = false

[settings.task]
train = "{world}/train.jsonl"
validation = "{world}/validation.jsonl"
test = "{world}/test.jsonl"
max_length = 16
"""


@pytest.fixture
def study(invoke, world, tmp_path, monkeypatch):
    """Run `gkd study COMMAND small.toml ...`; `study.started` are the names of cells that ran."""
    from gkd_core.cli import main

    def launch(self, launch):
        for job in launch.jobs:
            yield JobEvent(job)
            study.started.append(job.name)
            with pytest.raises(SystemExit) as stopped:
                main(job.command[3:])
            yield JobEvent(job, stopped.value.code or 0)

    monkeypatch.setattr(registry().launcher("local"), "launch", launch)
    (tmp_path / "small.toml").write_text(STUDY.format(world=world))

    def study(command, *arguments):
        study.started = []
        return invoke("study", command, "small.toml", *arguments)

    return study


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "studies" / "small"


def _cells(folder):
    return [cell for cell, _ in json.loads((folder / "cells.json").read_text())["cells"]]


def test_study_runs_each_cell_once(study, folder, invoke):
    first = study("run")
    assert (first.code, len(study.started)) == (0, 2), first.err
    assert "study studies/small: 2 cells: 2 waiting" in first.out
    assert "2/2  finished" in first.out
    assert "method=hard, task=files, seed=1  accuracy 0." in first.out
    for cell in _cells(folder):
        assert (folder / "cells" / cell["name"] / "predictions" / "student.parquet").exists()
        assert json.loads((folder / "attempts" / f"{cell['name']}.json").read_text())["memory"] > 0
    students = list(folder.glob("cells/*/student"))
    assert len(students) == 1  # the best on validation rows

    again = study("run")
    assert (again.code, study.started) == (0, [])
    more = study("run", "--axis", "seed=[1,2]", "--axis", "method=hard")
    assert (more.code, len(study.started)) == (0, 1)
    assert len(_cells(folder)) == 3  # kd stays, as a former one
    (former,) = [cell for cell in _cells(folder) if cell["axes"]["method"] == "kd"]
    assert invoke("study", "cell", folder, former["name"]).code == 0  # its command may be running

    _make_stale(folder, study.started[0])
    shown = study("status")
    assert "stale" in shown.out
    assert "--rerun-stale" in shown.out
    kept = study("run", "--axis", "seed=[1,2]", "--axis", "method=hard")
    assert (kept.code, study.started) == (0, [])
    rerun = study("run", "--axis", "seed=[1,2]", "--axis", "method=hard", "--rerun-stale")
    assert (rerun.code, len(study.started)) == (0, 1)
    assert "finished" in rerun.out


def _make_stale(folder, name):
    (path,) = (folder / "cells" / name / "stages").glob("*/manifest.json")
    manifest = Manifest.load(path)
    code = {"gkd-core": {"gkd_core/api.py": "of another time"}}
    replace(manifest, inputs={**manifest.inputs, "code": code}).save(path)


def test_failed_cell_is_recorded_with_the_end_of_its_error(study, folder):
    arguments = ("--axis", "training.lr=[1e30]", "--axis", "method=hard")
    failed = study("run", *arguments)
    assert failed.code == 1
    assert "1/1  failed" in failed.out
    assert "not finite" in failed.out
    assert "what failed, and why: gkd study status studies/small" in failed.out
    assert "not finite" in study("status").out
    (name,) = {path.stem for path in folder.glob("attempts/*.json")}
    study("run", *arguments)
    assert study.started == [name]  # once in each command
    assert json.loads((folder / "attempts" / f"{name}.json").read_text())["count"] == 2


def test_command_whose_cells_are_not_over_says_so(study, monkeypatch):
    def stopped(self, launch):
        for job in launch.jobs:
            yield JobEvent(job)
            yield JobEvent(job, 75)

    monkeypatch.setattr(registry().launcher("local"), "launch", stopped)
    left = study("run")
    assert left.code == 75
    assert "not all is done: 2 of its cells were stopped" in left.out
    monkeypatch.setattr(registry().launcher("local"), "launch", _to_a_queue)
    assert study("run").code == 0


def _to_a_queue(self, launch):
    yield from ()


@pytest.mark.filterwarnings("default:.*waiting for a sign of life")
def test_cell_of_another_machine_passes_on_only_without_a_sign_of_life(
    study, folder, invoke, monkeypatch
):
    only = ("--axis", "method=hard")
    monkeypatch.setattr(registry().launcher("local"), "launch", _to_a_queue)
    assert study("run", *only).code == 0
    (cell,) = _cells(folder)
    marker = folder / "attempts" / f".{cell['name']}.json.lease"
    marker.parent.mkdir()
    _hold_elsewhere(marker, 60.0)
    left = study("run", *only)
    assert left.code == 75
    assert "not all is done: 1 of its cells" in left.out

    with _signs_of_life(marker):
        refused = invoke("study", "cell", folder, cell["name"])
    assert refused.code == 75
    assert "waiting for a sign of life" in refused.err

    monkeypatch.setattr(lease, "DURATION", 0.3)
    _hold_elsewhere(marker, 0.3)
    taken = invoke("study", "cell", folder, cell["name"])
    assert taken.code == 0
    assert "waiting for a sign of life" in taken.err
    assert study("run", *only).code == 0
    assert (folder / "cells" / cell["name"] / "report.html").exists()


def _hold_elsewhere(marker, duration):
    marker.write_text(
        f"filelock/2\npid=4\nhost=elsewhere\nmode=lease\ntoken=other\nduration={duration}\nstart=7\n"
    )


@contextmanager
def _signs_of_life(marker):
    ended = threading.Event()

    def _beat():
        while not ended.wait(0.05):
            os.utime(marker)

    beating = threading.Thread(target=_beat)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()


def test_plan_times_each_shape_once_and_keeps_what_it_costs(study, folder):
    axes = ("--axis", "seed=[1,2,3]", "--axis", 'student.init=["spaced", "first"]')
    planned = study("plan", *axes)
    assert planned.code == 0, planned.err
    assert len(study.started) == 2  # of the two methods, wherever their students start
    assert "12 cells," in planned.out
    costs = json.loads((folder / "timing" / "costs.json").read_text())
    assert all(cost["stages"]["distil"]["step"] > 0 for cost in costs.values())
    assert not list(folder.glob("timing/cells/*/student"))
    again = study("plan", *axes)
    assert (again.code, study.started) == (0, [])
    assert again.out.splitlines()[-1] == planned.out.splitlines()[-1]


@pytest.mark.exhaustive
def test_predicted_time_is_near_the_measured_one(study, folder):
    longer = ("--axis", "seed=[1,2]", "--set", "training.epochs=6")
    Path("small.toml").write_text(Path("small.toml").read_text().replace("steps = 4, ", ""))
    assert study("plan", *longer).code == 0
    assert study("run", *longer).code == 0
    time = PredictedTime.of(StudyFolder.read(folder))
    assert time.cells == 4
    assert 1 / 4 < time.factor < 4  # other tests may run beside either; alone it is below 1.5
    assert str(time) in study("status").out


def test_trials_leave_the_test_rows_alone_and_are_predicted_to(study, folder, world):
    file = Path("small.toml")
    file.write_text("tune = { lr_factors = [1, 2] }\n" + file.read_text())
    only = ("--axis", "method=hard")
    assert study("plan", *only).code == 0
    (cost,) = json.loads((folder / "timing" / "costs.json").read_text()).values()
    (predicted,) = json.loads((folder / "timing" / "forecast.json").read_text()).values()
    few, many = (len((world / f"{name}.jsonl").read_text().splitlines()) for name in SPLITS)
    two_steps = 2 * cost["stages"]["distil"]["step"]
    saved = cost["comparison"] * (1 - few / many)
    assert predicted["1.0"] - predicted["0.5"] == pytest.approx(two_steps + saved)

    assert study("run", *only).code == 0
    split = {
        (c["role"], Predictions.read(folder / "cells" / c["name"] / "predictions").about.split)
        for c in _cells(folder)
    }
    assert split == {("tuning", "validation"), ("report", "test")}
    assert "0 cells, 0:00:00 one after the other" in study("plan", *only).out
    report = study("report")
    assert report.code == 0, report.err
    assert "some tasks have no test rows" not in report.out


SPLITS = ("validation", "test")


@pytest.mark.exhaustive
def test_depths_of_equal_size_are_compared_each_with_the_rate_that_suits_it(
    study, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    settings = Path("small.toml").read_text().partition("[settings]\n")[2]
    Path("small.toml").write_text(f"{EQUAL_AND_TUNED}{settings}")
    done = study("run")
    assert done.code == 0, done.err
    assert "2 more once their learning rates are tuned" in done.out
    cells = [cell for cell in _cells(folder) if not cell["reason"]]
    trials = [cell for cell in cells if cell["role"] == "tuning"]
    assert {(c["seed"], c["share"]) for c in trials} == {(1000, 0.5)}
    assert sorted(c["lr_factor"] for c in trials) == [0.01, 0.01, 4, 4]
    reported = [cell for cell in cells if cell["role"] == "report"]
    assert len(reported) == len(study.started) - len(trials) == 2
    assert study("run").code == len(study.started) == 0
    assert len(list(tmp_path.glob("cache/answers/*.safetensors"))) == 3, "to train, validate, test"
    assert all("logits of 96 rows are kept" in _log(folder, cell) for cell in cells)

    weights = {c["axes"]["student.layers"]: _student(folder, c)["parameters"] for c in reported}
    assert max(weights.values()) < 1.05 * min(weights.values()), weights
    shapes = {c["axes"]["student.layers"]: _shape(folder, c) for c in reported}
    assert len({hidden for hidden, _ in shapes.values()}) > 1
    assert all(hidden % 8 == 0 for hidden, _ in shapes.values())  # heads of the teacher's size

    for depth in (2, 4):
        tried = {c["lr_factor"]: _best(folder, c) for c in trials if _depth(c) == depth}
        chosen = {c["lr_factor"] for c in reported if _depth(c) == depth}
        assert chosen == {max(tried, key=lambda factor: (tried[factor], -factor))}
    shown = study("report")
    assert shown.code == 0, shown.err
    table = (folder / "report" / "axis-student.layers.csv").read_text().splitlines()
    rates = {row["student.layers"]: row["lr"] for row in csv.DictReader(table)}
    chosen = {str(_depth(c)): f"x {c['lr_factor']:g} ({1e-3 * c['lr_factor']:g})" for c in reported}
    assert rates == chosen


EQUAL_AND_TUNED = """
equal_size = "student.layers"

[axes]
student.layers = [2, 4]

[tune]
lr_factors = [0.01, 4]

[settings]
method = "kd"
student.init = "random"
"""


def _depth(cell):
    return cell["axes"]["student.layers"]


def _log(folder, cell):
    return (folder / "cells" / cell["name"] / "log.txt").read_text()


def _student(folder, cell):
    return json.loads((folder / "cells" / cell["name"] / "results.json").read_text())["rows"][-1]


def _shape(folder, cell):
    config = tomllib.loads((folder / "configs" / f"{cell['name']}.toml").read_text())["student"]
    return config.get("hidden_size", 32), config.get("ffn_size", 64)


def _best(folder, cell):
    """What a student is worth on validation rows."""
    (path,) = (folder / "cells" / cell["name"] / "stages").glob("*/done.json")
    return json.loads(path.read_text())["best"]


def test_unknown_study_is_named(invoke):
    result = invoke("study", "run", "method")
    assert result.code == 2
    assert "there is no study 'method'. Did you mean 'methods'?" in result.err
