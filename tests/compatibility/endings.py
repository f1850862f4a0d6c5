"""How a run that went on with another version must end: as it ended with its own."""

import json

import pytest
import torch
from make_runs import machine
from safetensors.torch import load_file

STUDENT = "student/model.safetensors"
DONE = "stages/{}/done.json"


def assert_same_student(runs, found, expected, rounds_alike=True):
    """Assert equal bits on the processor that the runs are from, else what rounding leaves."""
    bits = rounds_alike and machine() == json.loads((runs / "machine.json").read_text())
    mine, theirs = load_file(found / STUDENT), load_file(expected / STUDENT)
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        if bits:
            assert torch.equal(mine[name], weight), name
        else:
            torch.testing.assert_close(mine[name], weight, atol=1e-4, rtol=1e-3)


def assert_same_ending(found, expected, stage):
    mine, theirs = (json.loads((run / DONE.format(stage)).read_text()) for run in (found, expected))
    assert mine["steps"] == theirs["steps"]
    assert mine["best_step"] == theirs["best_step"]
    assert mine["best"] == pytest.approx(theirs["best"])
