"""The directory of a run: what is refused, what is replaced, and that nothing is lost."""

from __future__ import annotations

import os

import pytest

from gkd_core.errors import ConfigError, GkdError
from gkd_core.runs.directory import free_directory, open_directory, restore_replaced
from gkd_core.training import loop


def _files(directory):
    """Return {path: content} of everything in a folder, hidden things too."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def old_run(tmp_path):
    """The directory of an earlier run."""
    directory = tmp_path / "here" / "run"
    (directory / "student").mkdir(parents=True)
    (directory / "config.toml").write_text("seed = 1\n")
    (directory / "student" / "weights").write_text("precious")
    return directory


def _open(directory, mode, config="seed = 2\n"):
    with open_directory(directory, mode, config):
        pass


@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_new_directory_is_made_with_its_parents(tmp_path, mode):
    _open(tmp_path / "a" / "b", mode)
    assert _files(tmp_path) == {"a/b/config.toml": b"seed = 2\n"}


def test_empty_directory_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    _open(tmp_path / "run", "new")
    assert (tmp_path / "run" / "config.toml").exists()


def test_existing_run_is_refused_and_left_alone(old_run):
    before = _files(old_run)
    with pytest.raises(ConfigError, match=r"already exists.*--resume.*--overwrite.*--output"):
        _open(old_run, "new")
    assert _files(old_run) == before


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_directory_that_is_no_run_is_left_alone(tmp_path, mode):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(
        ConfigError, match="already exists" if mode == "new" else "not a run directory"
    ):
        _open(tmp_path / "photos", mode)
    assert _files(tmp_path) == {"photos/cat.jpg": b"cat"}


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_file_in_the_place_of_the_directory_is_left_alone(tmp_path, mode):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError):
        _open(tmp_path / "file", mode)
    assert _files(tmp_path) == {"file": b"text"}


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"contains no run to resume\. Omit --resume"):
        _open(tmp_path / "nothing", "resume")
    assert not (tmp_path / "nothing").exists()


def test_resume_keeps_what_is_there(old_run):
    _open(old_run, "resume", "seed = 1\n")
    assert _files(old_run) == {"config.toml": b"seed = 1\n", "student/weights": b"precious"}


def test_overwrite_replaces_the_run_and_nothing_beside_it(old_run):
    beside = old_run.with_name("run.old")
    beside.mkdir()
    (beside / "backup").write_text("mine")
    _open(old_run, "overwrite")
    assert _files(old_run.parent) == {"run/config.toml": b"seed = 2\n", "run.old/backup": b"mine"}


@pytest.mark.parametrize("failure", [GkdError("wrong"), KeyboardInterrupt(), OSError("disk")])
def test_overwritten_run_comes_back_if_the_new_one_fails_at_once(old_run, failure):
    before = _files(old_run.parent)

    def fails():
        with open_directory(old_run, "overwrite", "seed = 2\n"):
            (old_run / "stages" / "distil").mkdir(parents=True)
            (old_run / "log.txt").write_text("starting")
            raise failure

    with pytest.raises(type(failure)):
        fails()
    assert _files(old_run.parent) == before
    assert os.listdir(old_run.parent) == ["run"]


@pytest.mark.parametrize(
    "trained", ["done.json", "best.safetensors", "checkpoints/step-00000002/x"]
)
def test_new_run_that_fails_later_is_kept_to_be_resumed(old_run, trained):
    def fails():
        with open_directory(old_run, "overwrite", "seed = 2\n"):
            path = old_run / "stages" / "distil" / trained
            path.parent.mkdir(parents=True)
            path.write_text("hours of work")
            raise GkdError("late")

    with pytest.raises(GkdError, match="late"):
        fails()
    assert (old_run / "config.toml").read_text() == "seed = 2\n"
    assert os.listdir(old_run.parent) == ["run"]


def _killed_while_replacing(run, *begun):
    """Leave what a process leaves that was killed when it had written some files."""
    aside = run.parent / ".run.abc123.old"
    aside.mkdir()
    os.replace(run, aside / "run")
    for name in begun:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")


@pytest.mark.parametrize("begun", [(), ("log.txt",), ("config.toml", "stages/distil/x")])
@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_run_comes_back_whose_replacement_was_killed_too_early(old_run, begun, mode):
    before = _files(old_run.parent)
    _killed_while_replacing(old_run, *begun)
    with pytest.warns(UserWarning, match="is again the run that --overwrite had moved aside"):
        restored = _restored(old_run, mode)
    assert restored == before
    assert os.listdir(old_run.parent) == ["run"]


def _restored(run, mode):
    """What is there when a command has looked at a run in a mode, and failed."""
    with pytest.raises((ConfigError, KeyboardInterrupt)), open_directory(run, mode, "seed = 1\n"):
        raise KeyboardInterrupt
    return _files(run.parent)


def test_run_that_has_been_replaced_but_not_removed_is_named(old_run):
    _killed_while_replacing(old_run, "config.toml", "stages/distil/checkpoints/step-00000002/x")
    aside = old_run.parent / ".run.abc123.old" / "run"
    with pytest.warns(UserWarning, match=f"{aside} is the run that {old_run} has replaced"):
        _open(old_run, "resume")
    assert (aside / "student" / "weights").read_text() == "precious"


def test_a_rank_leaves_alone_what_its_launcher_has_set_aside(old_run, monkeypatch):
    with open_directory(old_run, "overwrite", "seed = 2\n") as lease:
        monkeypatch.setenv("GKD_LEASE", lease.token)
        restore_replaced(old_run)
        with open_directory(old_run, "resume", "seed = 2\n"):
            pass
        assert (old_run / "config.toml").read_text() == "seed = 2\n"
    assert _files(old_run.parent) == {"run/config.toml": b"seed = 2\n"}


def test_run_comes_back_if_the_disk_is_full(old_run, monkeypatch):
    before = _files(old_run.parent)

    def full(path, content):
        path.write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gkd_core.runs.directory.write_file", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        _open(old_run, "overwrite")
    assert _files(old_run.parent) == before


def test_unfinished_checkpoint_is_nothing_to_keep(old_run):
    before = _files(old_run.parent)

    def fails():
        with open_directory(old_run, "overwrite", "seed = 2\n"):
            (old_run / "stages/distil/checkpoints/step-00000002.tmp").mkdir(parents=True)
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fails()
    assert _files(old_run.parent) == before


def test_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuses(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuses)
    with pytest.raises(ConfigError, match=r"cannot be written: Permission denied. Choose another"):
        _open(tmp_path / "run", "new")


def test_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        _open(tmp_path / "file" / "run", "new")


def test_runs_are_numbered_by_method(tmp_path):
    assert free_directory("pkd+soft", tmp_path) == tmp_path / "pkd+soft-1"
    (tmp_path / "pkd+soft-1").mkdir()
    (tmp_path / "pkd+soft-3").mkdir()
    assert free_directory("pkd+soft", tmp_path) == tmp_path / "pkd+soft-2"
    assert free_directory("linear(0 -> 1)*soft/../x", tmp_path).parent == tmp_path


def test_command_numbers_its_runs(invoke, settings, tmp_path):
    for _ in range(2):
        assert invoke("run", *settings, "--method", "soft").code == 0
    assert sorted(os.listdir(tmp_path / "runs")) == ["soft-1", "soft-2"]


def test_command_refuses_to_resume_with_other_settings(invoke, settings, tmp_path):
    run = ("run", *settings, "--method", "soft", "--output", "out")
    assert invoke(*run).code == 0
    before = _files(tmp_path / "out")
    changed = ("--set", "training.lr=0.5", "--set", "soft.temperature=2", "--resume")
    outcome = invoke(*run, *changed)
    assert outcome.code == 2
    assert "these settings differ: soft.temperature, training.lr" in " ".join(outcome.err.split())
    assert _files(tmp_path / "out") == before


def test_command_resumes_with_the_directory_alone(invoke, settings, tmp_path, monkeypatch):
    stock = loop.train_step
    steps = []

    def dies(*arguments):
        steps.append(0)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return stock(*arguments)

    monkeypatch.setattr(loop, "train_step", dies)
    often = ("--set", "training.checkpoint_every=2")
    assert invoke("run", *settings, *often, "--method", "soft", "--output", "out").code != 0
    assert not (tmp_path / "out" / "student").exists()
    elsewhere = ("--set", "teacher.placement=offload")  # other machines need no other run
    assert invoke("run", "--output", "out", "--resume", *elsewhere).code == 0
    assert len(steps) == 5 + 2
    assert (tmp_path / "out" / "student" / "config.json").exists()


def test_command_that_is_refused_destroys_nothing(invoke, settings, tmp_path):
    assert invoke("run", *settings, "--method", "soft", "--output", "out").code == 0
    before = _files(tmp_path / "out")
    for wrong in (
        ("--method", "sfot"),
        ("--student-layers", "9"),
        ("--set", "training.lr=ten"),
        ("--set", "task.max_length=2"),  # seen only when the rows are encoded
        ("--set", "method=averag(soft)"),
    ):
        outcome = invoke("run", *settings, "--output", "out", "--overwrite", *wrong)
        assert outcome.code == 2, wrong
        assert _files(tmp_path / "out") == before, wrong
    assert sorted(p for p in os.listdir(tmp_path) if p != "cache") == ["out"]
