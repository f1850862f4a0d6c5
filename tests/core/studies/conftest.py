"""Studies whose results are made up, so that what they have to show is known."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from gkd_core.contract.run_info import STAGES
from gkd_core.evaluation.predictions import PREDICTIONS, About, Predictions
from gkd_core.runs.result import StageResult
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.study_config import parse_study
from gkd_core.studies.study_folder import StudyFolder

ROWS = 300
GOLD = ["yes", "no"]


def _column(right):
    """Return predictions of rows whose label is `yes`, by whether they are right."""
    return [GOLD[0] if each else GOLD[1] for each in right]


class StudyWriter:
    """Writes a study whose students are as good as they are told to be.

    Args:
        path: Its folder.
        study: What its file says.
    """

    def __init__(self, path, study):
        self.folder = StudyFolder(path, parse_study(study, "test"), [])
        self.random = np.random.default_rng(7)
        self.cells = []

    def add(self, quality, *, seed=1, task="embedded", state="finished", rows=ROWS, **axes):
        """Add a cell; `quality` is the probability of a right answer, and the validation metric."""
        cell = Cell(f"cell{len(self.cells)}", axes, seed, task)
        self.cells.append(cell)
        if state == "failed":
            Attempt(2, 1, "Traceback\nOutOfMemory: no room").save(self.folder.attempt_file(cell))
        elif state == "finished":
            right = self.random.random(rows) < quality
            _finish_run(self.folder.run_directory(cell), cell, right, quality)
        return cell

    def close(self):
        """Write the list of cells, and return the folder."""
        whole = StudyFolder(self.folder.path, self.folder.config, self.cells)
        whole.write()
        return whole.path


def _results(quality, method):
    """Return what a run says of its models; students of methods with long names are slow."""

    def row(name, accuracy, milliseconds):
        return {
            "name": name,
            "model": name,
            "metrics": {"accuracy": accuracy},
            "parameters": 2_000_000,
            "bytes": 8_000_000,
            "milliseconds": milliseconds,
        }

    rows = [row("teacher", 1.0, 20.0), row(f"student, {method}", quality, 4.0 + len(method))]
    return {"metric": "accuracy", "split": "test", "samples": ROWS, "rows": rows}


def _finish_run(directory, cell, right, validation, last="distil"):
    """Write what a finished run of a cell leaves, of a student that is right on some rows."""
    stage = directory / STAGES / last
    stage.mkdir(parents=True)
    method = cell.axes.get("method", "kd")
    config = f'method = "{method}"\n' if last == "distil" else f'stages = [{{name = "{last}"}}]\n'
    (directory / "config.toml").write_text(f"{config}seed = {cell.seed}\n")
    results = _results(float(right.mean()), method)
    (directory / "results.json").write_text(json.dumps(results))
    done = StageResult(last, "student", 5, "accuracy", validation, 5, 1.0)
    done.save(stage / "done.json")
    about = About("test", "classification", ("yes", "no"), "accuracy")
    size = len(right)
    hashes = [f"{cell.task}{row}" for row in range(size)]
    columns = {"row": range(size), "hash": hashes, "text": hashes, "pair": pa.nulls(size)}
    rows = pa.table({**columns, "gold": ["yes"] * size, "group": pa.nulls(size)})
    models = {
        file: pa.table({"hash": hashes, "prediction": _column(own)})
        for file, own in (("student", right), ("teacher", np.ones(size, bool)))
    }
    names = {"student": f"student, {method}", "teacher": "teacher"}
    Predictions(about, rows, models, names).write(directory / PREDICTIONS)
    (directory / "report.html").write_text("")


@pytest.fixture(scope="session")
def finish_run():
    """Return a function that writes what a finished run of a cell leaves."""
    return _finish_run


@pytest.fixture(scope="module")
def write_study():
    """Return a function that begins a study."""
    return StudyWriter
