"""Campaigns against running commands: `make test-faults PART=1/4`."""

import zlib

import pytest


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", help="Run the i-th of n equal parts: i/n.")


def pytest_collection_modifyitems(config, items):
    """Leave the campaigns of the chosen part."""
    part, parts = map(int, config.getoption("--part", default="1/1").split("/"))
    if parts == 1:
        return
    chosen = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="module")
def rows(world):
    """Arguments of a run of two stages with a checkpoint after every second step."""
    return [
        *("--teacher", world / "teacher", "--student-layers", 2, "--data", world / "train.jsonl"),
        *("--set", f"task.validation={world / 'validation.jsonl'}"),
        *("--set", f"task.test={world / 'test.jsonl'}", "--set", "task.max_length=32"),
        *("--set", "training.batch_size=16", "--set", "training.lr=1e-3"),
        *("--set", "training.epochs=1", "--set", "training.checkpoint_every=2"),
        *("--set", "training.log_every=2", "--method", "pkd+soft", "--baseline"),
    ]
