"""`gkd cache` killed at ten of its writes: the finished cache has the bytes of one that was not."""

import pytest
from tests.faults.trials import run

MOMENTS = 10


@pytest.fixture(scope="module")
def arguments(world):
    """The arguments of a cache of a language model's states, and of its head."""
    return [
        *("--teacher", world / "lm-decoder", "--data", world / "train.jsonl"),
        *("--set", "task.kind=causal-lm", "--set", "task.text=text", "--set", "task.max_length=16"),
    ]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """Return the files of a cache that nothing has happened to, and the number of its writes."""
    folder = tmp_path_factory.mktemp("whole")
    status, said, writes = run(folder, "cache", *arguments, "--output", folder / "out")
    assert status == 0, said
    return files(folder), writes


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.mark.campaign
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_cache_goes_on_and_ends_with_the_same_bytes(arguments, whole, tmp_path, moment):
    expected, writes = whole
    assert writes >= MOMENTS, "there are as many moments"
    at = 1 + moment * (writes - 1) // (MOMENTS - 1)
    command = ("cache", *arguments, "--output", tmp_path / "out")
    status, said, _ = run(tmp_path, *command, at=at)
    assert status == -9, said
    status, said, _ = run(tmp_path, *command)
    assert status == 0, said
    assert files(tmp_path) == expected
