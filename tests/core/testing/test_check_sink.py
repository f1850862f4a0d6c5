"""`check_sink` passes sinks that keep the contract, and names what others break."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import Field

from gkd_core.api import Sink
from gkd_core.plugins import registry
from gkd_core.testing import check_sink


class Lines(Sink):
    """Writes a line for every step."""

    name = "lines"

    def start(self, run, settings):
        self.path = run.directory / "lines.txt"

    def log(self, step, values):
        with self.path.open("a") as file:
            print(step.stage, step.index, dict(values), file=file)


class Strict(Lines):
    """Holds no numbers that JSON has not."""

    def log(self, step, values):
        json.dumps(dict(values), allow_nan=False)


class Drawing(Lines):
    """Draws a color."""

    def start_stage(self, name, total, done):
        torch.rand(3)


class Renaming(Lines):
    """Renames what it is given."""

    def log(self, step, values):
        values["step"] = step.index


class Fresh(Lines):
    """Cannot go on with a run."""

    def start(self, run, settings):
        super().start(run, settings)
        self.path.touch(exist_ok=False)


class Ending(Lines):
    """Takes every end for a good one."""

    class Config(Sink.Config):
        careful: bool = Field(False, description="Whether there may be an error.")

    def finish(self, error):
        assert self.config.careful or error is None


def test_tensorboard_passes():
    check_sink(registry().sink("tensorboard"))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_trackers_pass(name, monkeypatch, tmp_path):
    pytest.importorskip("sqlalchemy" if name == "mlflow" else name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_sink(registry().sink(name))


def test_sink_that_keeps_the_contract_passes():
    check_sink(Lines)
    check_sink(Ending, {"careful": True})


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        (Strict, r"lines.log raised ValueError: .*not JSON compliant"),
        (Drawing, "lines.start_stage draws from PyTorch's generator"),
        (Renaming, "lines.log changes what it is given"),
        (Fresh, "lines.start raised FileExistsError"),
        (Ending, "lines.finish raised AssertionError"),
    ],
)
def test_what_a_sink_breaks_is_named(sink, said):
    with pytest.raises(AssertionError, match=said):
        check_sink(sink)
