"""Numbers about written text, counted by hand."""

from __future__ import annotations

import torch

from gkd_core.rollouts.tally import Tally


def test_lengths_truncation_and_speed():
    tally = Tally()
    texts = [torch.tensor(text) for text in ([5, 1], [5, 5, 5, 5], [1])]
    tally.add(texts, [1], seconds=0.5)
    tally.add([torch.tensor([5])], [1], seconds=0.5)
    assert tally.read() == {
        "rollout/tokens": 2,
        "rollout/truncated": 0.5,
        "rollout/tokens_per_second": 8,
    }
    assert tally.read() == {}, "a reading starts anew"


def test_a_mismatch_is_said_once():
    tally = Tally()
    tally.add_mismatch(0.25)
    assert tally.read() == {"rollout/mismatch": 0.25}
    assert tally.read() == {}


def test_texts_of_earlier_steps_are_a_share_of_those_used():
    tally = Tally()
    tally.add_used(3, 0)
    tally.add_used(1, 1)
    assert tally.read() == {"rollout/stale": 0.25}
