"""A teacher with another tokenizer, on ranks that share it or both models."""

from __future__ import annotations

import pytest

WHOLE_ROWS = (
    ("classification", "", ["method=pkd+kd"]),
    ("masked-lm", "masked-", ["method=rail-kd", "task.kind=masked-lm"]),
)
NEAR_SGD = "training.eps=0.01"
"""Steps in proportion to the gradient: those of AdamW would enlarge the rounding of small ones."""

ALIGNED = (("causal-lm", "causal-", ["method=uld+gold+dskd", "task.kind=causal-lm", NEAR_SGD]),)
"""Name of each run, what its models predict, and settings."""

KINKS = 1e-3
"""Tolerance for sorted distances: where two probabilities are equal but for rounding, the gradient
jumps. `check_method` compares these methods on two ranks in fp64."""


@pytest.fixture
def compare(still, on_ranks, runs, tongues, tmp_path):
    """Train runs in which a RoBERTa learns from a BERT, in one process and on two ranks."""

    def _compare(chosen, layouts, tolerance=1e-5):
        cases = [
            (
                name,
                str(tongues / f"{head}bert"),
                [f"student.model={tongues / f'{head}roberta'}", *own, "task.max_length=64"],
            )
            for name, head, own in chosen
        ]
        runs.assert_layouts_equal(still, tmp_path, cases, layouts, on_ranks, tolerance)

    return _compare


@pytest.mark.exhaustive
def test_shared_teacher_teaches_the_same(compare):
    compare(WHOLE_ROWS, ["teacher.tensor=2", "teacher.placement=zero3"])


LAYOUTS = ["parallel.tensor=2 teacher.tensor=2", "parallel.zero=2", "parallel.zero=3"]


@pytest.mark.parametrize(
    "layouts",
    [
        LAYOUTS,
        pytest.param(["parallel.zero=2 teacher.tensor=2"], marks=pytest.mark.exhaustive),
    ],
)
def test_aligned_tokens_teach_the_same(compare, layouts):
    compare(ALIGNED, layouts, KINKS)
