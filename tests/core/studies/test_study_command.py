"""`gkd study` from the command line; cells run in this process, which costs no import of torch."""

import json

import pytest

from gkd_core.contract.launcher import JobEvent
from gkd_core.plugins import registry

STUDY = """
title = "Two methods"
baseline = {{ method = "hard" }}

[axes]
method = ["kd", "hard"]

[settings]
baseline = false
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


def test_study_runs_each_cell_once(study, folder):
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
    content = json.loads(path.read_text())
    file = next(iter(content["inputs"]["code"]["gkd-core"]))
    content["inputs"]["code"]["gkd-core"][file] = "of another time"
    path.write_text(json.dumps(content))


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


def test_plan_shows_what_cells_cost_and_keeps_it(study, folder):
    planned = study("plan", "--axis", "seed=[1,2,3]")
    assert planned.code == 0, planned.err
    assert len(study.started) == 2
    assert "6 cells," in planned.out
    costs = json.loads((folder / "timing" / "costs.json").read_text())
    assert all(cost["stages"]["distil"]["step"] > 0 for cost in costs.values())
    assert not list(folder.glob("timing/cells/*/student"))
    again = study("plan", "--axis", "seed=[1,2,3]")
    assert (again.code, study.started) == (0, [])
    assert again.out.splitlines()[-1] == planned.out.splitlines()[-1]


def test_unknown_study_is_named(invoke):
    result = invoke("study", "run", "method")
    assert result.code == 2
    assert "there is no study 'method'. Did you mean 'methods'?" in result.err
