"""A language model that ends worse than a guess, or than it began, is warned about."""

from __future__ import annotations

import pytest


@pytest.fixture
def said(invoke, world):
    """Train a decoder on labels and return what is printed: `said(steps=3)`."""

    def _said(**training):
        corpus = world / "corpus.txt"
        settings = {"task.kind": "causal-lm", "task.max_length": 24, "task.validation": corpus}
        settings |= {f"training.{name}": value for name, value in training.items()}
        shown = [part for pair in settings.items() for part in ("--set", "=".join(map(str, pair)))]
        given = ["--teacher", world / "lm-decoder", "--student-layers", 2, "--method", "hard"]
        done = invoke("run", *given, "--data", corpus, *shown)
        assert done.code == 0, done.err
        return " ".join((done.out + done.err).split())

    return _said


def test_a_student_that_is_torn_apart_is_warned_about(said):
    found = said(steps=3, lr=1, keep_best="false")
    assert "warning: the student of stage distil is no better than a guess: perplexity" in found
    assert "warning: the student of stage distil is worse than at its start: perplexity" in found


def test_a_student_that_learns_is_not(said):
    assert "warning: the student of stage" not in said(steps=20, lr=1e-2)
