"""What models write on several ranks: data sets of the teacher, and texts that are used again."""

from __future__ import annotations

import pytest

LM = ["task.kind=causal-lm", "training.evaluate_every=4"]
WRITING = [
    *(*LM, "method=hard", "writing.prompt_tokens=4", "writing.max_new_tokens=6"),
    *("writing.temperature=1", "writing.samples=2"),
]
REPLAY = [
    *(*LM, "method=soft", "rollout.engine=generate", "rollout.student=0.5", "rollout.replay=4"),
    *("rollout.prompt_tokens=2", "rollout.max_new_tokens=3", "training.checkpoint_every=2"),
    *("rollout.adaptive=true", "rollout.loss_rise=0", "training.evaluate_every=2"),
]

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def test_ranks_share_the_writing_of_a_data_set(still, on_ranks, runs, tmp_path):
    once, shared = tmp_path / "once", tmp_path / "shared"
    runs.train(still, once, "lm-decoder", WRITING)
    on_ranks(2, runs.train, still, shared, "lm-decoder", WRITING)
    (written,) = once.rglob("written.jsonl")
    assert written.read_bytes() == (shared / written.relative_to(once)).read_bytes()
    assert written.read_text().count("\n") > 100
    runs.assert_equal(shared, once)


def test_each_rank_resumes_with_the_texts_that_it_kept(still, on_ranks, runs, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    on_ranks(2, runs.train, still, whole, "lm-decoder", REPLAY)
    on_ranks(2, runs.train, still, resumed, "lm-decoder", REPLAY, 5)
    on_ranks(2, runs.train, still, resumed, "lm-decoder", REPLAY)
    runs.assert_same(resumed, whole)
