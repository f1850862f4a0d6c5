"""A finished run whose student the tests export."""

import pytest
from tests import forked


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """The directory of a run with a student for classification; do not change it."""
    folder = tmp_path_factory.mktemp("exported")
    settings = ["student.layers=2", "task.max_length=32", "training.epochs=1"]
    settings += [f"task.{name}={world}/{name}.jsonl" for name in ("validation", "test")]
    arguments = ["--teacher", world / "teacher", "--data", world / "train.jsonl"]
    for setting in settings:
        arguments += ["--set", setting]
    done = forked.run(forked.GKD, "run", *arguments, "--no-baseline", "--output", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
