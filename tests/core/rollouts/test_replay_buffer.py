"""Texts of the student that are used again, and a share of its rows that adapts (DistiLLM)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.config.schema import RolloutConfig
from gkd_core.rollouts.replay_buffer import KeptText, ReplayBuffer
from gkd_core.rollouts.rows import RowText
from gkd_core.training import loop

TABLE = (
    "rollout.engine=generate",
    "rollout.prompt_tokens=4",
    "rollout.max_new_tokens=6",
    "rollout.adaptive=true",
    "rollout.loss_rise=0",
    "rollout.replay=6",
    "rollout.student=0.5",
)


def _replay(**options):
    return ReplayBuffer(RolloutConfig(engine="generate", **options))


def _text(step):
    return KeptText(RowText(torch.tensor([1, 2]), torch.tensor([step])), step)


def test_the_share_grows_when_the_validation_loss_rises():
    replay, shares = _replay(adaptive=True), []
    # It is compared with the loss at which the share grew last.
    for loss in (2.0, 1.5, 2.05, 2.1, 2.15, 2.25, 2.0, 2.4):
        replay.note_loss(loss)
        shares.append(round(replay.growth, 9))
    assert shares == [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.3]
    for loss in range(3, 20):
        replay.note_loss(loss)
    assert replay.growth == 1
    constant = _replay()
    constant.note_loss(1.0)
    constant.note_loss(9.0)
    assert constant.growth == 0


def test_the_oldest_text_makes_room():
    replay = _replay(replay=3)
    for step in range(5):
        replay.add(_text(step))
    assert [text.step for text in replay.texts] == [2, 3, 4]
    assert [replay.draw(chance).step for chance in (0.0, 0.34, 0.999)] == [2, 3, 4]


def test_the_share_of_new_texts_falls_once_there_are_enough():
    replay = _replay(replay=2)
    assert replay.writes_anew(0.99, progress=0.9)
    replay.add(_text(0))
    replay.add(_text(0))
    assert replay.writes_anew(0.49, progress=0.5)
    assert not replay.writes_anew(0.5, progress=0.5)
    assert _replay().writes_anew(0.99, progress=1.0)


def test_the_state_is_that_of_before():
    replay = _replay(replay=3, adaptive=True)
    replay.add(_text(4))
    replay.note_loss(2.0)
    again = _replay(replay=3, adaptive=True)
    again.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert again.state_dict() == replay.state_dict()
    assert _replay().state_dict() == {}


@pytest.fixture
def trained(prepare_run, world):
    """Train with the table, and return the weights and the logged share of old texts."""

    def _trained(directory):
        corpus = f"task.train={world / 'corpus.txt'}"
        plain = [corpus, corpus.replace("train", "validation"), corpus.replace("train", "test")]
        steps = ("training.steps=6", "training.evaluate_every=1", "training.checkpoint_every=1")
        rest = ("task.kind=causal-lm", "method=soft", "training.log_every=1", "output.reuse=false")
        run = prepare_run(
            *plain, *TABLE, *steps, *rest, teachers=("lm-decoder",), directory=directory
        )
        run.execute()
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
        logged = [line for line in map(json.loads, lines) if "rollout/stale" in line]
        return load_file(run.student / "model.safetensors"), {
            line["step"]: line["rollout/stale"] for line in logged
        }

    return _trained


def test_a_resumed_run_replays_the_same_texts(trained, monkeypatch):
    weights, stale = trained("whole")
    assert stale[1] == 0
    assert max(stale.values()) > 0
    stock = loop.train_step

    def dies(stage, batches, step):
        if step.index == 4:
            raise KeyboardInterrupt
        return stock(stage, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            trained("killed")
    again, later = trained("killed")
    assert {step: later[step] for step in (5, 6)} == {step: stale[step] for step in (5, 6)}
    assert all(torch.equal(weights[name], again[name]) for name in weights)
