"""A study on a disk that is full: cells fail with the reason, and go on once there is room."""

import subprocess

import pytest

pytestmark = pytest.mark.cluster

TOO_SMALL = "size=500k"
LARGE = "size=100m"


def _mount(folder, options):
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(three_cells):
    """A disk for the folder of the study that is too small for it."""
    folder = three_cells.path.parent
    folder.mkdir()
    if not _mount(folder, TOO_SMALL):
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_cells_go_on_once_there_is_room(three_cells, small_disk, locally, capfd):
    assert three_cells.run("--threads", "1") not in (0, None)
    assert "the disk is full" in capfd.readouterr().out
    assert len(three_cells.finished) < 3
    assert _mount(small_disk, f"remount,{LARGE}")
    assert three_cells.run("--threads", "1") == 0
    expected, found = locally.predictions(), three_cells.predictions()
    assert len(found) == 3
    assert found == {name: expected[name] for name in found}
    assert {each["status"] for each in three_cells.attempts().values()} == {0}
