"""`gkd plan` simulates three micro-batches of a step and says what all of them take."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gkd_core.config.resolve import resolve
from gkd_core.planning import simulation
from gkd_core.planning.shapes import ShapeSpecBuilder
from gkd_core.planning.simulation import simulate
from gkd_core.plugins import registry
from gkd_core.runs.run import build_specs

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TWO = "parallel.nproc=2"
OFFLOADED = ("parallel.offload_optimizer=cpu", "parallel.offload_params=cpu")
LAYOUTS = {
    "one process": (),
    "checkpointing": ("training.gradient_checkpointing=true",),
    "ZeRO 0": (TWO,),
    "ZeRO 1": (TWO, "parallel.zero=1"),
    "ZeRO 2": (TWO, "parallel.zero=2"),
    "ZeRO 3": (TWO, "parallel.zero=3", "teacher.placement=zero3"),
    "tensor": (TWO, "parallel.tensor=2"),
    "optimizer on host": (TWO, "parallel.zero=2", OFFLOADED[0]),
    "all on host": (TWO, "parallel.zero=3", *OFFLOADED, "teacher.placement=offload"),
}


@pytest.fixture
def stage_of(world, tmp_path):
    """Prepare a stage to plan, of models of one block: `stage_of("training.accumulation=8")`."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))

    def _stage(*settings):
        given = [f"teacher.model={tmp_path}", "student.layers=1", "method=soft"]
        given += [f"task.train={world / 'corpus.txt'}", "task.kind=causal-lm", "task.max_length=8"]
        resolved = resolve(registry(), settings=[*given, "training.batch_size=16", *settings])
        tasks = [stage.config.task for stage in resolved.stages]
        (stage,) = build_specs(resolved, ShapeSpecBuilder(registry(), tasks)).values()
        return stage

    return _stage


def _check_equals_full_simulation(stage):
    some, full = simulate(stage, registry()), simulate(stage, registry(), every=True)
    assert replace(some, seconds=0) == replace(full, seconds=0)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "layout", ["ZeRO 3", pytest.param("one process", marks=pytest.mark.exhaustive)]
)
def test_three_micro_batches_tell_what_all_take(stage_of, layout):
    _check_equals_full_simulation(stage_of(*LAYOUTS[layout], "training.accumulation=4"))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("accumulation", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_micro_batches_tell_what_all_take_in_every_layout(stage_of, layout, accumulation):
    _check_equals_full_simulation(
        stage_of(*LAYOUTS[layout], f"training.accumulation={accumulation}")
    )


@pytest.mark.parametrize(("accumulation", "expected"), [(2, 2), (8, 3)])
def test_no_more_than_three_micro_batches_are_simulated(
    stage_of, monkeypatch, accumulation, expected
):
    simulated = []

    def counting(stage, batches, step):
        simulated.append(len(batches))
        return train_step(stage, batches, step)

    train_step = simulation.train_step
    monkeypatch.setattr(simulation, "train_step", counting)
    simulate(stage_of(f"training.accumulation={accumulation}"), registry())
    assert simulated == [expected] * simulation.STEPS
