"""Weights & Biases and MLflow without a server: what they keep is read back."""

from __future__ import annotations

import json
import struct
import time
from contextlib import suppress
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gkd_core.contract.step import Step
from gkd_core.plugins import registry
from gkd_core.tracking.recorder import Recorder

SETTINGS = {"method": "pkd+soft", "training.lr": 0.5, "student.init": [1, 3]}
MODEL = "student, pkd+soft"


def _record(directory, name, steps, done=0, error=None, **options):
    """Record steps of a stage of a run, which may be resumed after `done` of them."""
    said = []
    sink = registry().sink(name)
    sink = sink(sink.Config(**options))
    sink.check()
    listener = SimpleNamespace(
        say=said.append,
        start_stage=lambda *_: None,
        log_step=lambda *_: None,
        log_evaluation=lambda *_: None,
        end_stage=lambda: None,
    )
    recorder = Recorder([listener], [sink])
    (directory / "report.html").write_text(f"after {steps}")
    with suppress(type(error)), recorder.record(SimpleNamespace(directory=directory), SETTINGS):
        recorder.start_stage("distil", 8, done)
        for index in steps:
            step = Step(index, 8, 0, "distil", torch.default_generator)
            losses = {"total": 8.0 - index}
            recorder.log_step(
                step, losses, lr=0.5, gradient_norm=1.0, samples_per_second=float("inf")
            )
        recorder.log_evaluation(step, {"accuracy": 0.75})
        recorder.end_stage()
        if error is not None:
            raise error
        recorder.summarize({f"test/accuracy/{MODEL}": 0.625})
        recorder.add_file(directory / "report.html")
    assert said == [], "nothing has failed"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run-1").mkdir()
    return tmp_path / "run-1"


# Weights & Biases

BLOCK, HEAD = 32768, 7


def _records(path):
    """Yield the records of a file of Weights & Biases: a log in the format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), HEAD, b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def _whole_file(path):
    """Return the records of a file that another process of theirs may still be writing."""
    for _ in range(600):
        records = list(_records(path))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _items(items):
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


@pytest.mark.exhaustive
def test_wandb_keeps_curves_settings_results_and_files_of_a_resumed_run(directory, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _record(directory, "wandb", range(3), error=KeyboardInterrupt(), project="mine")
    _record(directory, "wandb", range(2, 5), done=2, project="mine")
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"))
    first, second = (_whole_file(file) for file in files)
    begun = [record.run for record in first + second if record.HasField("run")]
    assert len({run.run_id for run in begun}) == 1, "a resumed run goes on with the same"
    assert {(run.project, run.display_name) for run in begun} == {("mine", "run-1")}
    assert _items(begun[0].config.update).items() >= SETTINGS.items()
    for records, steps in ((first, [1, 2, 3, 3]), (second, [3, 4, 5, 5])):
        found = [_items(r.history.item) for r in records if r.HasField("history")]
        assert [entry["distil/step"] for entry in found] == steps
        assert [e["distil/loss/total"] for e in found[:-1]] == [9.0 - s for s in steps[:-1]]
        assert found[-1]["distil/validation/accuracy"] == 0.75
    axes = [r.metric.step_metric for r in first if r.metric.glob_name == "distil/*"]
    assert axes == ["distil/step"]
    summaries = [_items(r.summary.update) for r in second if r.HasField("summary")]
    assert {f"test/accuracy/{MODEL}": 0.625} in summaries
    assert [r.exit.exit_code for r in first + second if r.HasField("exit")] == [1, 0]
    (kept,) = files[1].parent.glob("files/report.html")
    assert kept.read_text() == "after range(2, 5)"


# MLflow


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its libraries
def test_mlflow_keeps_curves_settings_results_and_files_of_a_resumed_run(directory, monkeypatch):
    pytest.importorskip("sqlalchemy")
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _record(directory, "mlflow", range(3), error=KeyboardInterrupt(), experiment="mine")
    client = tracking.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("KILLED", "run-1")
    assert run.data.params == {name: str(value) for name, value in SETTINGS.items()}
    _record(directory, "mlflow", range(2, 5), done=2, experiment="mine")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED", "a resumed run goes on with the same"
    history = client.get_metric_history(run.info.run_id, "distil/loss/total")
    assert {point.step: point.value for point in history} == {s: 9.0 - s for s in range(1, 6)}
    assert run.data.metrics["distil/validation/accuracy"] == 0.75
    assert run.data.metrics["test/accuracy/student_ pkd_soft"] == 0.625
    kept = client.download_artifacts(run.info.run_id, "report.html")
    assert Path(kept).read_text() == "after range(2, 5)"
    other = directory.parent / "run-2"
    other.mkdir()
    _record(other, "mlflow", range(1), error=ValueError(), experiment="mine")
    (failed,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'run-2'")
    assert failed.info.status == "FAILED"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_said_before_the_run(invoke, monkeypatch, name, tmp_path):
    found = util.find_spec
    monkeypatch.setattr(
        "gkd_core.tracking.sinks.packages.find_spec",
        lambda package: None if package == name else found(package),
    )
    said = invoke("run", "--track", name, "--output", "run")
    assert said.code == 2
    assert f"tracker '{name}' needs the package {name}" in said.err
    assert f"pip install 'gkd-core[{name}]'" in said.err
    assert not (tmp_path / "run").exists()
