"""What a checkpoint holds, and that only whole ones are found."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.training import checkpoint
from gkd_core.training.assembly import build_stage
from gkd_core.training.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    remove_checkpoints,
    save_checkpoint,
    save_weights,
)


@pytest.fixture
def stage(prepare_run, tmp_path):
    """A stage that is ready to train."""
    run = prepare_run("method=pkd+soft")
    return build_stage(run.last, run.registry, tmp_path / "stage", None)


def _full(*arguments):
    raise OSError("full")


def _names(stage):
    return sorted(path.name for path in (stage.directory / "checkpoints").iterdir())


def test_newest_checkpoint_brings_everything_back(stage):
    progress = Progress(step=3, best=0.123456789012345678, best_step=2, waited=1)
    save_checkpoint(stage, progress)
    weights = {n: p.detach().clone() for n, p in stage.student.model.named_parameters()}
    torch_state = torch.get_rng_state()
    states = {n: g.get_state() for n, g in stage.objective.generators().items()}
    with torch.no_grad():
        for parameter in stage.student.model.parameters():
            parameter.normal_()
    for generator in stage.objective.generators().values():
        torch.rand(3, generator=generator)
    found = load_checkpoint(stage, print)
    assert found == progress
    assert all(torch.equal(p, weights[n]) for n, p in stage.student.model.named_parameters())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(
        torch.equal(g.get_state(), states[n]) for n, g in stage.objective.generators().items()
    )


def test_older_checkpoints_are_removed_after_the_new_one_is_whole(stage, monkeypatch):
    save_checkpoint(stage, Progress(step=2))
    monkeypatch.setattr(
        checkpoint, "random_states", lambda stage: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_checkpoint(stage, Progress(step=4))
    assert _names(stage) == ["step-00000002", "step-00000004.tmp"]
    assert load_checkpoint(stage, print).step == 2
    monkeypatch.undo()
    save_checkpoint(stage, Progress(step=4))
    assert _names(stage) == ["step-00000002", "step-00000004"]
    (stage.directory / "checkpoints" / "notes.txt").write_text("mine")
    save_checkpoint(stage, Progress(step=6))
    assert _names(stage) == ["notes.txt", "step-00000004", "step-00000006"]


def test_newest_is_chosen_where_removal_was_interrupted(stage, monkeypatch):
    save_checkpoint(stage, Progress(step=9))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)
    save_checkpoint(stage, Progress(step=10))
    assert _names(stage) == ["step-00000009", "step-00000010"]
    assert load_checkpoint(stage, print).step == 10


def test_checkpoint_is_safetensors_and_json(stage):
    folder = save_checkpoint(stage, Progress(step=1))
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            load_file(path)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_weights_are_replaced_only_when_they_are_written(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    save_weights(model, tmp_path / "best.safetensors")
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    monkeypatch.setattr(checkpoint, "save_file", _full)
    with pytest.raises(OSError, match="full"):
        save_weights(model, tmp_path / "best.safetensors")
    load_weights(model, tmp_path / "best.safetensors")
    assert torch.equal(model.weight, before)


def test_finished_stage_keeps_nothing_but_its_result(stage):
    save_checkpoint(stage, Progress(step=1))
    save_weights(stage.student.model, stage.best)
    (stage.directory / "done.json").write_text("{}")
    for _ in range(2):
        remove_checkpoints(stage.directory)
        assert [path.name for path in stage.directory.iterdir()] == ["done.json"]


def test_weights_include_the_buffers_that_belong_to_them(tmp_path):
    model, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    model(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    save_weights(model, tmp_path / "norm.safetensors")
    load_weights(other, tmp_path / "norm.safetensors")
    assert torch.equal(other.running_mean, model.running_mean)
    assert int(other.num_batches_tracked) == 1
