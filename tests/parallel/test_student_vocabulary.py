"""A student with a part of its teacher's tokens is trained on several ranks as in one process."""

from __future__ import annotations

import pytest

SIZE = 86
"""Fewer than the 90 of the teachers, and no multiple of the ranks' number squared."""


@pytest.fixture
def cases(tongues):
    """A classifier and a language model, whose head is cut as well: name, teacher, settings."""
    own = [f"student.vocabulary={SIZE}", "training.lr=1e-2"]
    return [
        ("classes", str(tongues / "bert"), ["method=pkd+soft", *own]),
        ("masked-lm", str(tongues / "masked-bert"), ["method=soft", "task.kind=masked-lm", *own]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(["parallel.zero=3"], id="zero 3"),
        pytest.param(
            ["parallel.zero=0", "parallel.zero=1", "parallel.zero=2"], marks=pytest.mark.exhaustive
        ),
    ],
)
def test_layouts_train_as_one_process_does(world, cases, on_ranks, runs, tmp_path, layouts):
    runs.assert_layouts_equal(world, tmp_path, cases, layouts, on_ranks)
