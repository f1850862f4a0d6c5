"""What `gkd plan` says a step takes is what PyTorch's profiler sees it take."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gkd_core.contract.step import Step
from gkd_core.planning.simulation import simulate
from gkd_core.training.assembly import build_stage
from gkd_core.training.loop import iterate
from gkd_core.training.step import train_step

STEPS = 2


@pytest.fixture
def memory():
    """What the benchmarks measure memory with."""
    path = Path(__file__).parents[2] / "benchmarks" / "step_memory.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(("training.gradient_checkpointing=true",), marks=pytest.mark.exhaustive),
    ],
)
def test_planned_peak_is_the_measured_one(prepare_run, tmp_path, memory, settings):
    run = prepare_run(
        "method=pkd+minilm+soft",
        "parallel.device=cpu",
        "training.batch_size=48",
        "task.max_length=7",  # the shortest row has as many tokens: all are of this length
        *settings,
    )
    before = memory._held()
    stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
    parts = list(iterate(stage.train, stage.collator, stage.sampler, 0, STEPS))
    held = memory._held() - before
    stage.student.model.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for index, (epoch, batches) in enumerate(parts):
            step = Step(index, STEPS, epoch, stage.name, torch.default_generator)
            train_step(stage, batches, step)
    measured = held + memory._growth(profiler)
    planned = simulate(run.last, run.registry)
    assert planned.peak == pytest.approx(measured, rel=0.1)
    assert planned.memory["activations"] > 0.2 * planned.peak


def test_memory_that_another_thread_frees_is_not_measured_for_good(memory):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        handed_over = [torch.empty(2**20)]
        thread = Thread(target=handed_over.clear)
        thread.start()
        thread.join()
        kept = torch.empty(2**21)
    assert memory._growth(profiler) == kept.nbytes
