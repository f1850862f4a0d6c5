"""A run that is killed, stopped or out of disk at any write ends as if nothing had happened."""

import shutil

import pytest
from safetensors.torch import load_file
from tests import forked

POINTS = 40
SOME = (11,)
"""Points that `make test` runs; the others are exhaustive."""

KINDS = ("kill", "stop", "full")


def _every(*kinds):
    return [
        pytest.param(kind, point, marks=() if point in some else pytest.mark.exhaustive)
        for kind, some in kinds
        for point in range(POINTS)
    ]


GKD = "import sys; from tests.faults.faulty import main; main(*sys.argv[1:])"


def _run(folder, *arguments, at=0, kind="kill"):
    """Run `gkd` in a folder, with a fault at a write; its status, what it said, its writes."""
    counted = folder / "writes.txt"
    faults = (counted, folder / "out", at, kind)
    ended = forked.run(GKD, *faults, *arguments, cwd=folder, GKD_CACHE=str(folder / "cache"))
    writes = int(counted.read_text()) if counted.exists() else 0
    return ended.returncode, ended.stdout + ended.stderr, writes


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The folder of a run that nothing has happened to, and the number of its writes."""
    folder = tmp_path_factory.mktemp("whole")
    status, said, writes = _run(folder, "run", *rows, "--output", folder / "out")
    assert status == 0, said
    return folder, writes


def _students(folder):
    return {
        path.relative_to(folder): load_file(path) for path in folder.rglob("student/*.safetensors")
    }


def _assert_same_students(folder, expected):
    found, wanted = _students(folder), _students(expected)
    assert found.keys() == wanted.keys()
    for path, weights in wanted.items():
        assert all((found[path][name] == weight).all() for name, weight in weights.items()), path


def _go_on(folder, said, status, rows):
    """Continue a run as its message says, or as one does after a kill."""
    starts = status == 130 or "start again" in said or not (folder / "out/config.toml").exists()
    if starts:
        shutil.rmtree(folder / "out", ignore_errors=True)
    arguments = rows if starts else ["--resume"]
    again, told, _ = _run(folder, "run", *arguments, "--output", folder / "out")
    assert again == 0, told


@pytest.mark.parametrize(
    ("kind", "point"), _every(("kill", SOME), ("stop", SOME[1:]), ("full", SOME[1:]))
)
def test_run_goes_on_whatever_happens_at_a_write(rows, whole, tmp_path, kind, point):
    expected, writes = whole
    at = 1 + point * writes // POINTS
    new = (*rows, "--output", tmp_path / "out")
    status, said, _ = _run(tmp_path, "run", *new, at=at, kind=kind)
    assert status in {"kill": (-9,), "stop": (75, 130, 0), "full": (1, 2, 0)}[kind], said
    assert "Traceback" not in said
    if status != 0:
        _go_on(tmp_path, said, status, rows)
    _assert_same_students(tmp_path / "out", expected / "out")


@pytest.mark.parametrize(("kind", "point"), _every(("kill", SOME[:1]), ("full", ())))
def test_overwriting_never_loses_both_runs(rows, whole, tmp_path, kind, point):
    expected, writes = whole
    shutil.copytree(expected, tmp_path, dirs_exist_ok=True)
    at = 1 + point * writes // POINTS
    new = (*rows, "--seed", 2, "--overwrite", "--output", tmp_path / "out")
    status, said, _ = _run(tmp_path, "run", *new, at=at, kind=kind)
    assert status != 75, said
    status, said, _ = _run(tmp_path, "run", "--resume", "--output", tmp_path / "out")
    assert status == 0, said
    config = (tmp_path / "out" / "config.toml").read_text()
    if "seed = 1\n" in config or "seed = 1 " in config:
        _assert_same_students(tmp_path / "out", expected / "out")
    else:
        assert len(_students(tmp_path / "out")) == len(_students(expected / "out"))
