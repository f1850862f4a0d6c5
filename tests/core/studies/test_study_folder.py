import json

import pytest

from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError
from gkd_core.runs.inputs import CODE, VERSIONS
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.study_config import parse_study
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.training.manifest import MANIFEST, Manifest

CODE_NOW = {"gkd-core": {"a.py": "1"}}


def _cell(name, **more):
    return Cell(name, {"method": name}, 1, "embedded", **more)


@pytest.fixture
def folder(tmp_path):
    config = parse_study({"axes": {"method": ["kd", "hard"]}}, "test")
    cells = [_cell(n) for n in ("finished", "stale", "failed", "stopped", "new")]
    dropped = _cell("dropped", reason="it makes no sense")
    made = StudyFolder(tmp_path, config, [*cells, dropped], [_cell("former")])
    made.write_configs({"new": "seed = 1\n"})
    made.write()
    return StudyFolder.read(tmp_path, CODE_NOW)


def _finish(folder, name, code):
    run = folder.path / "cells" / name
    inputs = {CODE: {"gkd-core": {"a.py": code}}, VERSIONS: {"gkd-core": f"0.{code}"}}
    Manifest(inputs=inputs).save(run / STAGES / "distil" / MANIFEST)
    (run / "results.json").write_text("{}")
    (run / "report.html").write_text("")


def test_states_of_cells_follow_from_what_is_on_the_disk(folder):
    _finish(folder, "finished", "1")
    _finish(folder, "stale", "0")
    by_name = {cell.name: cell for cell in folder.cells}
    Attempt(2, 2, "Error: no such method").save(folder.attempt_file(by_name["failed"]))
    Attempt(1, 75).save(folder.attempt_file(by_name["stopped"]))

    states = {name: folder.state(cell) for name, cell in by_name.items()}
    assert states == {
        "finished": CellState.FINISHED,
        "stale": CellState.STALE,
        "failed": CellState.FAILED,
        "stopped": CellState.WAITING,
        "new": CellState.WAITING,
        "dropped": CellState.DROPPED,
    }
    assert folder.failure(by_name["failed"]) == "Error: no such method"
    assert folder.failure(by_name["stopped"]) == ""
    assert folder.version(by_name["stale"]) == "0.0"
    assert by_name["dropped"].reason == "it makes no sense"
    assert [cell.name for cell in folder.former] == ["former"]


def test_run_without_its_last_file_is_not_finished(folder):
    _finish(folder, "finished", "1")
    cell = folder.cells[0]
    (folder.run_directory(cell) / "report.html").unlink()
    assert folder.state(cell) is CellState.WAITING


def test_other_directory_is_refused(tmp_path):
    (tmp_path / "cells.json").write_text(json.dumps({"cells": [[{"name": "x"}, True]]}))
    with pytest.raises(ConfigError, match="is not the folder of a study"):
        StudyFolder.read(tmp_path)


def test_cell_with_a_damaged_manifest_is_stale(folder):
    _finish(folder, "finished", "1")
    cell = folder.cells[0]
    (folder.run_directory(cell) / STAGES / "distil" / MANIFEST).write_text("{")
    assert folder.state(cell) is CellState.STALE
    assert folder.version(cell) == ""
