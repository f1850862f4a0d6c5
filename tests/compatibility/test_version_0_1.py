"""Runs of version 0.1 go on: what it left on disk is resumed and reused as if it were new."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from endings import STUDENT, assert_same_ending, assert_same_student
from tests import forked

HERE = Path(__file__).parent
RUNS = HERE / "v0.1"


@pytest.fixture
def runs(invoke, tmp_path):
    """The folder with the runs, which is the current one; `cache` in it is the cache."""
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def shipped(monkeypatch):
    """Install the plugin whose task brings a teacher."""
    import shipped

    from gkd_core import plugins

    installed = plugins.registry()
    installed.manager.register(shipped, "shipped")
    monkeypatch.setitem(installed.plugins, "shipped", plugins.Plugin("shipped", "shipped", "1.0"))
    _forget_tasks(installed)
    yield
    installed.manager.unregister(shipped)
    _forget_tasks(installed)


def _forget_tasks(registry):
    vars(registry).pop("tasks", None)


@pytest.mark.parametrize(("name", "stage"), [("interrupted", "distil"), ("stages", "second")])
def test_an_interrupted_run_goes_on(runs, invoke, name, stage):
    killed, ended = runs / "killed" / name, runs / "ended" / name
    remembered = set((runs / "cache/stages").glob("*.json"))
    done = invoke("run", "--resume", "--output", f"killed/{name}")
    assert done.code == 0, done.err
    log = (killed / "log.txt").read_text()
    assert f"stage {stage}: steps 4 to 6" in log
    assert log.count(f"stage {stage}: was begun by a version of gkd that kept no manifest") == 1
    assert "is not checked: its rows, models, settings and code may have changed" in log
    assert set((runs / "cache/stages").glob("*.json")) == remembered, "it is not known what it is"
    assert_same_student(RUNS, killed, ended)
    assert_same_ending(killed, ended, stage)


def _no_random_states(checkpoint):
    (checkpoint / "random.safetensors").unlink()


def _far_ahead(checkpoint):
    path = checkpoint / "progress.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 1000000000'))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_random_states, "random.safetensors: was part of every checkpoint, is missing"),
        (_far_ahead, "progress.json: was step-00000003, is step 1000000000"),
    ],
)
def test_a_checkpoint_without_a_manifest_is_not_loaded_in_part(runs, invoke, damage, said):
    (checkpoint,) = (runs / "killed/interrupted").glob("stages/*/checkpoints/*")
    damage(checkpoint)
    done = invoke("run", "--resume", "--output", "killed/interrupted")
    assert done.code == 2
    assert said in done.err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_interrupted_run_of_two_ranks_goes_on(runs):
    command = ("run", "--resume", "--nproc", 2, "--output", "killed/ranks")
    for done in forked.run_ranks(2, *command, cwd=runs, GKD_CACHE=str(runs / "cache")):
        assert done.returncode == 0, done.stderr
    assert "stage distil: steps 4 to 6" in (runs / "killed/ranks/log.txt").read_text()
    assert_same_student(RUNS, runs / "killed/ranks", runs / "ended/ranks")
    assert_same_ending(runs / "killed/ranks", runs / "ended/ranks", "distil")


def test_a_finished_run_is_left_as_it_is(runs, invoke):
    finished = runs / "ended/finished"
    before = (finished / STUDENT).read_bytes()
    done = invoke("run", "--resume", "--output", "ended/finished")
    assert done.code == 0, done.err
    assert (finished / STUDENT).read_bytes() == before
    log = (finished / "log.txt").read_text()
    for stage in ("baseline", "distil"):
        assert f"stage {stage} is finished already; changed since then: code" in log


def test_a_default_teacher_that_was_kept_is_not_trained_again(runs, invoke, shipped):
    ended = runs / "ended/default-teacher"
    done = invoke("run", ended / "config.toml", "--output", "again")
    assert done.code == 0, done.err
    assert not (runs / "again/stages/teacher").exists()
    assert len(list((runs / "cache/teachers").iterdir())) == 1
    assert_same_student(RUNS, runs / "again", ended)
