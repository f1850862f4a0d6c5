"""A teacher on a server that writes rows of a step."""

from __future__ import annotations

import pytest
import torch
from tests.serving import serving

from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.errors import ConfigError, DataError
from gkd_core.teachers import server as client
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

TABLE = ("rollout.prompt_tokens=4", "rollout.max_new_tokens=6", "rollout.teacher=1")
GREEDY = (*TABLE, "rollout.engine=generate", "rollout.temperature=0")


@pytest.fixture
def server(world, monkeypatch):
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with serving(world / "lm-decoder", monkeypatch) as served:
        yield served


@pytest.fixture
def prepare(prepare_run, registry_with, world, plugin):
    """Prepare a run on text, with the address of a server or without."""

    def _prepare(*settings, server=None):
        text = [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]
        if server is not None:
            text += ["teacher.source.name=server", f"teacher.source.url={server.url}"]
        given = ("task.kind=causal-lm", "method=soft", "soft.temperature=1", *settings)
        registry = registry_with(plugin("greedy"))
        return prepare_run(*text, *given, teachers=("lm-decoder",), registry=registry)

    return _prepare


@pytest.fixture
def texts(prepare, tmp_path):
    """Return the stage, and its first rows as models have written them."""

    def _texts(*settings, server=None, name="stage"):
        run = prepare(*settings, server=server)
        stage = build_stage(run.last, run.registry, tmp_path / name, None)
        batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, stage.total_steps))[1]
        return stage, stage.rollout(batches, _step(stage))

    return _texts


def _step(stage):
    return Step(0, stage.total_steps, 0, stage.name, torch.default_generator)


def _tokens(batches):
    return [
        ids[own].tolist()
        for batch in batches
        for ids, own in zip(batch.inputs["input_ids"], batch.mask, strict=True)
    ]


def test_a_server_writes_the_rows_that_its_model_would(texts, server):
    server.defaults = {"repetition_penalty": 3.0}
    live = texts(*GREEDY, name="live")[1]
    stage, served = texts(*GREEDY, server=server, name="served")
    assert _tokens(served) == _tokens(live)
    assert all(batch.written_by("teacher").all() for batch in served)
    batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, stage.total_steps))[1]
    assert train_step(stage, batches, _step(stage)).losses["soft"] > 0


def test_rows_that_a_server_writes_are_drawn_by_their_seeds(texts, server):
    drawn = (*TABLE, "rollout.engine=generate")
    once, again, other = (
        _tokens(texts(*drawn, f"seed={seed}", server=server, name=name)[1])
        for seed, name in ((1, "once"), (1, "again"), (2, "other"))
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            (*GREEDY, "rollout.teacher=0", "rollout.student=1", "rollout.mixture=0.5"),
            r"rollout\.mixture makes the teacher write.*there is no model that could",
        ),
        ((*TABLE, "rollout.engine=greedy"), "'greedy' does not say how it draws tokens"),
        (
            (*GREEDY, "parallel.nproc=2", "parallel.tensor=2"),
            "2 processes share the student and would each ask",
        ),
    ],
)
def test_what_a_server_cannot_write_is_refused(prepare, server, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        prepare(*settings, server=server)


def test_a_server_that_does_not_name_tokens_is_refused(prepare, server):
    server.gives, server.is_strict = ("prompt_logprobs",), True
    with pytest.raises(ConfigError, match="does not give the token ids of what it writes"):
        prepare(*GREEDY, server=server)


def test_tokens_that_the_teacher_lacks_are_not_learned(texts, server):
    none, first = [None] * 3, lambda choices: choices[0]["token_ids"].insert(0, 10**6)
    server.faults = [*none, first]  # the way to ask, k, whether it names tokens
    with pytest.raises(DataError, match=r"wrote the tokens \[1000000, .*server of the"):
        texts(*GREEDY, server=server)
