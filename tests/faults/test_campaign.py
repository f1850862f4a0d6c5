"""A run that is killed, stopped or out of disk at any write ends as if nothing had happened."""

import shutil

import pytest
from tests.faults.trials import assert_same_students, go_on, run, students

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


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The folder of a run that nothing has happened to, and the number of its writes."""
    folder = tmp_path_factory.mktemp("whole")
    status, said, writes = run(folder, "run", *rows, "--output", folder / "out")
    assert status == 0, said
    return folder, writes


@pytest.mark.parametrize(
    ("kind", "point"), _every(("kill", SOME), ("stop", SOME[1:]), ("full", SOME[1:]))
)
def test_run_goes_on_whatever_happens_at_a_write(rows, whole, tmp_path, kind, point):
    expected, writes = whole
    at = 1 + point * writes // POINTS
    new = (*rows, "--output", tmp_path / "out")
    status, said, _ = run(tmp_path, "run", *new, at=at, kind=kind)
    assert status in {"kill": (-9,), "stop": (75, 130, 0), "full": (1, 2, 0)}[kind], said
    assert "Traceback" not in said
    if status != 0:
        go_on(tmp_path, said, status, rows)
    assert_same_students(tmp_path / "out", expected / "out")


@pytest.mark.exhaustive
@pytest.mark.parametrize("point", [8, 30])
@pytest.mark.parametrize("kind", ["quota", "read-only", "stale", "broken", "removed"])
def test_error_of_a_disk_names_the_file_and_the_way_on(rows, whole, tmp_path, kind, point):
    expected, writes = whole
    new = (*rows, "--output", tmp_path / "out")
    status, said, _ = run(tmp_path, "run", *new, at=1 + point * writes // POINTS, kind=kind)
    assert status in (1, 2), said
    assert "Traceback" not in said
    assert str(tmp_path / "out") in "".join(said.split("\n"))
    go_on(tmp_path, said, status, rows)
    assert_same_students(tmp_path / "out", expected / "out")


@pytest.mark.parametrize(("kind", "point"), _every(("kill", ()), ("full", ())))
def test_overwriting_never_loses_both_runs(rows, whole, tmp_path, kind, point):
    expected, writes = whole
    shutil.copytree(expected, tmp_path, dirs_exist_ok=True)
    at = 1 + point * writes // POINTS
    new = (*rows, "--seed", 2, "--overwrite", "--output", tmp_path / "out")
    status, said, _ = run(tmp_path, "run", *new, at=at, kind=kind)
    assert status != 75, said
    status, said, _ = run(tmp_path, "run", "--resume", "--output", tmp_path / "out")
    assert status == 0, said
    config = (tmp_path / "out" / "config.toml").read_text()
    if "seed = 1\n" in config or "seed = 1 " in config:
        assert_same_students(tmp_path / "out", expected / "out")
    else:
        assert len(students(tmp_path / "out")) == len(students(expected / "out"))
